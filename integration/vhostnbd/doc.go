// Vhostnbd attaches a vhost-user-blk socket to a disk of this kernel, /dev/nbdN. It is a front-end
// towards the socket and an NBD server towards the kernel. With it a test has a file system on a
// back-end that runs in the same guest.
//
// It executes requests one by one. It reports a write cache to the kernel, so that a flush arrives
// for each barrier. It ends when the kernel releases the device, or the back-end disconnects. lets
// go of the device, or the back-end goes away.
package main
