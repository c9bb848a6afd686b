// Vhostnbd makes a disk of this kernel, /dev/nbdN, of a vhost-user-blk socket:
// it is a front-end towards the socket, and an NBD server towards the kernel.
// With it a test has a file system on a back-end that runs in the same guest.
//
// Requests are carried out one by one. The kernel is told that the disk has a
// write cache, so that a flush arrives for each barrier. It ends when the kernel
// lets go of the device, or the back-end goes away.
package main
