// Package device is a block device for tests: a file in a FUSE file system that this package
// serves, under a loop device. It behaves like a disk with a volatile write cache, and fails on
// request.
//
// The parts, from the bottom:
//
//   - [Disk] holds the content: the durable content, and the sectors written since the
//     last sync. Cut loses all or some of those sectors; faults and a freeze apply to
//     later requests. A Disk is plain memory and needs no privileges.
//   - A child process serves a Disk as the only file of a FUSE file system. It is a
//     separate process because a process that serves a file system and also waits for
//     a sync of it waits for ever. The child is the program that called [Start],
//     executed again, so that program must call [RunChild] first.
//   - [Device] is the parent's side. Attach makes a loop device on the file; the
//     loop's flushes arrive at the Disk as FSYNC. The other methods call those of Disk
//     in the child over a socket pair.
//
// A loop device is attached with autoclear: it disappears when the file system on it is unmounted.
// A program that runs in a mount namespace of its own therefore leaves nothing behind, however it
// ends.
//
// The package needs root, /dev/fuse and /dev/loop-control.
package device
