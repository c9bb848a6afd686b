// Package outage tests cowblk from outside, on real file systems whose device fails: power cuts,
// I/O errors, file systems that are shut down, filled, restored from a backup or mounted again. The
// tests run the built binary ($COWBLK_BINARY, else the one of "make build") and talk to it as a
// guest's front-end does (package vhost/frontend). They do not depend on its implementation. They
// carry the build tag "integration" and need root, FUSE and loop devices.
//
// # The promises
//
//   - After a power cut each sector holds its last flushed content or a later write's.
//     Every disorderly end of the mounted file system counts as a power cut: an outage
//     of its device, or its shutdown, even if the kernel continues (the same boot) and
//     the file system is mounted again.
//   - If only the process dies, every completed write is there, in whichever mount
//     namespace the next process runs.
//   - An error of the device never loses flushed content, never ends the process, and
//     never leaves a disk that cannot be opened.
//   - A store that is restored from a backup holds the backup's content.
//
// # The parts
//
// Package device is the disk: a FUSE file under a loop device. A machine is a file system on it
// (see filesystems), with a store of three disks, of 512-byte, 4 KiB and 64 KiB blocks, over a base
// of known content. An oracle records, for each sector of a disk, the content that it may hold. A
// life is a repeated series of random steps with a power cut at the end.
//
// Each sector holds the disk, number and version of its content, so that a message can name the
// origin of wrong content. Messages name the seed of a life; COWBLK_OUTAGE_SEED repeats it, and
// COWBLK_OUTAGE_CUTS sets the number of cuts for each file system ("make outage" has 50, "make
// test" 3).
//
// The test binary executes itself again in a mount namespace of its own: no mount survives it,
// however it ends.
package outage
