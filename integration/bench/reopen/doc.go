// Package reopen measures what it costs that a guest's unflushed writes survive the process that
// serves them, for two builds of cowblk: "before" and "after".
//
// An in-process front-end drives "cowblk serve" of both binaries in turn. The package prints
// Markdown tables:
//
//   - reopen: a disk of 1 GiB, 1 TiB or 64 TiB with few or many unflushed blocks is
//     served, the process is killed (SIGKILL), and another one is started. The result
//     is the time from its start until the front-end, which has reconnected as QEMU
//     does, has read a block; the CPU time and peak memory (VmHWM) of the process up to
//     then; and the size of the record of unflushed blocks on disk or in memory. A
//     sample of the blocks is read back and compared: if the disk has lost them there
//     is no result. Background flushes are off, so that there is something to recover.
//   - empty: creating, serving and promoting an empty disk of 64 TiB.
//   - takeover: "serve --takeover" under load. The gap is the longest time without a
//     completed request at the front-end, which reconnects at once.
//   - writes: first writes, overwrites and writes with flushes, strictly in turn. The
//     ratio is the median of the ratios of neighbours, so that other activity of the
//     machine disturbs both sides.
//
// Files of 64 TiB need a file system that supports them: reopen and empty make an XFS in a sparse
// file, mounted through a loop device anew for each sample, so the program must run as root.
// takeover and writes use the file system of --dir itself. The run directory of each store is a
// tmpfs of its own, as /run is on a host.
//
// The row with two million scattered blocks of 64 TiB takes ten minutes and 13 GiB of memory: its
// index has an entry for nearly every part of the disk. A build with live files (before 4e160de)
// needs 2 GiB of disk space for each head of 64 TiB.
package reopen
