// Package device is a block device for tests: a file in a FUSE file system that
// this package serves, under a loop device. It behaves like a disk with a volatile
// write cache, and fails on request.
//
// The parts, from the bottom:
//
//   - [Disk] holds the content: what is durable, and the sectors that were written
//     since the last sync. Cut loses those sectors, all or some; faults and a freeze
//     apply to what follows. A Disk is plain memory and needs no privileges.
//   - A child process serves a Disk as the only file of a FUSE file system. It is a
//     process of its own: one that serves a file system and also waits for a sync of
//     it waits for ever. The child is the program that called [Start], executed again,
//     so that program calls [RunChild] first of all.
//   - [Device] is the parent's side. Attach makes a loop device on the file; the
//     loop's flushes arrive at the Disk as FSYNC. The other methods are those of Disk,
//     called in the child over a socket pair.
//
// A loop device is attached with autoclear: it goes when the file system on it is
// unmounted. A program that runs in a mount namespace of its own therefore leaves
// nothing behind, however it ends.
//
// Needs root, /dev/fuse and /dev/loop-control.
package device
