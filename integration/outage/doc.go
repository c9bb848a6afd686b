// Package outage tries cowblk, from outside, on real file systems whose device
// fails: power cuts, I/O errors, file systems that are shut down, filled, restored
// from a backup or mounted again. The tests run the built binary ($COWBLK_BINARY,
// else the one of "make build") and talk to it as a guest's front-end does
// (package vhosttest); they know nothing of how the binary keeps its promises.
// They carry the build tag "integration" and need root, FUSE and loop devices.
//
// # The promises
//
//   - After a power cut each sector holds its last flushed content or a later write's.
//     Everything that ends the mounted file system without an orderly end is such a
//     cut: an outage of its device, its shutdown, also when the kernel goes on (the
//     same boot) and it is mounted again.
//   - When the process alone dies, every completed write is there, in whatever mount
//     namespace the next process runs.
//   - An error on the device never takes flushed content away, never ends the process
//     and never makes a disk that cannot be opened any more.
//   - A store that is restored from a backup holds what the backup held.
//
// # The parts
//
// Package device is the disk: a FUSE file under a loop device. A machine is a file
// system on it (see filesystems), with a store of three disks, of 512-byte, 4 KiB
// and 64 KiB blocks, over a base of known content. An oracle knows for each sector of
// a disk what it may hold. A life is a series of random steps with a power cut at the
// end, and again.
//
// Each sector carries disk, number and version of its content, so that a message
// tells where wrong content comes from. Messages name the seed of a life;
// COWBLK_OUTAGE_SEED repeats it, and COWBLK_OUTAGE_CUTS sets the number of cuts for
// each file system ("make outage" has 50, "make test" 3).
//
// The test binary executes itself again in a mount namespace of its own: nothing
// stays mounted, however it ends.
package outage
