// Package cow is the engine: it serves reads, writes, flushes, discards and write-zeroes of a disk
// from a stack of copy-on-write layers.
//
// # Words
//
// A disk and its parts:
//
//   - stack: a base, sealed layers, and one head on top
//   - base: the immutable bottom of a stack, a file or block device; optional
//   - layer: one copy-on-write delta: a map (one bit per block) and data
//   - head: the layer that takes writes
//   - block: the unit of ownership, 512 bytes to 64 KiB
//   - sector: 512 bytes
//   - map: a layer's bitmap on disk, one bit per block; bitmap: the same in memory
//   - owner: the newest layer whose bit is set for a block; 0: the base, or nothing
//   - index: the table that finds the owner of a block in constant time (package index)
//   - data checksum: the checksum of 4 KiB of a sealed layer's data; unit: these 4 KiB
//
// A write:
//
//   - first write: a write, discard or write-zeroes of a block that the head does not own yet
//   - overwrite: a write of a block that the head owns
//   - copy-up: reading the rest of a block from its owner for a first write of a part of it
//   - guard, claim: the range lock over blocks that orders first writes; one range in it
//   - raise: record in the index that the head owns a block; owners only rise
//   - superseded: written by a newer view's write while an older view's write was under way
//
// A change of the stack:
//
//   - view: one immutable state of a stack; a request finishes on the view that it began with
//   - pin: a mark that requests in flight use a view, or a memory table, which must stay until then
//   - gate: holds back new writes while several disks are swapped at once
//   - promote: turn the head into a sealed layer and put a new, empty head on top
//   - swap: the instant of a promotion: the store of the view with the new head
//   - seal: make a former head durable and mark it as never changing again
//   - synchronize: wait until no request is on an older view (as synchronize_rcu in Linux)
//
// A channel has one pin for its requests on a view; several asynchronous operations share it by
// reference counts (asyncRef). A former head is one that is not sealed yet.
//
// Durability:
//
//   - flush round: one run of data sync, map write and map sync that serves all waiting flushes
//   - unflushed: completed and not covered by a flush round yet
//   - clean: said of a head that was closed in order; its header then has a checksum of its map
//   - shared map: a file in memory (tmpfs) with the bits that are not in the head's map yet; it
//     survives the process, not the kernel
//   - recover: load the bits of the shared map of a process that was killed
//   - detach: close a disk at once and leave its unflushed bits to the next process
//
// Threads and queues:
//
//   - channel: one queue's way into a disk
//   - thread pool: goroutines that carry out requests which would block a queue's thread
//   - asyncIO: what a channel has in its I/O engine (package aio)
//   - completion queue: completions that other goroutines post to a channel
//   - notifier: an eventfd that wakes one goroutine
//   - resident: said of a page that is in the page cache, as far as is known
//   - prefetch: look up the owners of all reads of a batch before the first is served
//
// # A stack
//
// The base never changes, sealed layers never change again, and there is one head. A layer is a
// map, one bit per block (set: this layer owns the block), and data, with block i at offset i times
// the block size. Package layer keeps the files. Package index finds the owner of a block, and the
// length of its run, at the same cost at any depth.
//
// # What happens to a block
//
// H is the number of the head of a writable disk. For one block:
//
//	operation            owner < H                            owner = H          owner > H
//	read                 read the owner, zeros beyond it      read the head      take a newer view
//	write, whole block   guard; write; set bit; raise         write              superseded
//	write, part          wait for old writers; guard;         write              superseded
//	                     copy-up; write whole; set bit; raise
//	discard, whole       guard; punch; set bit; raise         punch              superseded
//	discard, part        nothing                              nothing            nothing
//	write-zeroes, part   as a write of zeros                  write zeros        superseded
//	promote              ————————————————— H becomes H+1, no block changes —————————————————
//
// The guard is in guard.go; the owner is looked up again once it is held. Old writers are writes
// that began before the promotion that made the head (view.go). Raising the index is the last step:
// a reader that sees the new owner finds its data in place.
//
// # A write finds a newer owner
//
// A write that began on a view before a promotion finds a newer owner if a write of the new view
// has taken its block in between. The two overlap in time, and the newer one replaced the whole
// block (a partial first write would have waited for the older one, see waitOldWriters). So the
// older write may be the one that loses: it is skipped. This holds after a power cut too: the flush
// that makes the older write durable covers all heads, and with them the newer write.
//
// # What is durable when
//
// A flush round (flush.go) does, for the head and for former heads that are not sealed yet: (a)
// copy the map pages that changed, with the bits of completed writes; (b) sync the data; (c) write
// the copied pages; (d) sync the map. Without new bits it is (b) alone. So a bit is never durable
// before its data, and a power cut leaves in each sector what was flushed last or something written
// later. Flushes that wait together share a round; a flush that arrives during a round waits for
// the next. A failed sync turns the disk read-only until it is opened again.
//
// A round also begins by itself when a completed write has waited for one for Options.FlushInterval
// (background.go). A round that fails for want of space in the map is repeated after the same time.
//
// # What survives the process
//
// The death of the process is no power cut: its guest lives on and reads what it has written. The
// kernel has the data. The bits that are not in the map yet are in the head's shared map
// (layer/shared_map.go). The rules:
//
//   - The bitmap in memory is private and alone says who owns a block. No error, eviction, fault
//     or other file changes it. A map page is written from the bitmap, never from something that
//     was read back: bits on disk only rise.
//   - A bit is in the shared map before its write is acknowledged, in memory that was reserved
//     before. Without memory or a shared map (Options.SharedDir is empty, or the map has faulted)
//     the write completes after a flush round, as does every write until that round, unless
//     Options.LoseUnflushed is set.
//   - The header of the map names the shared map with a generation of the opening. The shared map
//     is valid only if boot, mounted file system, inodes, generation and times of change agree, no
//     sync has failed, and write-back has lost no data since (layer/unflushed.go,
//     layer/write_back.go). A clean head has no shared map.
//   - A shared map that exists, or should, and cannot be read refuses the open (ErrUnflushed). One
//     that is invalid is ignored: the disk is as after a power cut, and the data in the page cache
//     is dropped, not served.
//   - Unflushed bits of any layer of a stack are covered by the next flush (the head) or made
//     durable by the open (a former head: sealed, or, while others read it, written to its map).
//     Nothing of them is removed before the header or manifest that replaces them is durable.
//
// So the cost of an open depends on what the maps own and the shared map holds, not on the size of
// the disk. A disk that was detached is opened in the same way, but the header need not be written:
// the last process has left it in order.
//
// # What is verified
//
// A sealed layer may have checksums of its data (AddChecksums makes them). Data is compared with
// them before its request succeeds when it is read for the first time since the open, or comes from
// the device (verify.go). A difference is an error. Base and head have no checksums.
//
// # Who runs where
//
//   - A Channel belongs to one queue and its thread. Submit does at once what needs no waiting:
//     reads of what is in memory (copied from mappings of the base's and the layers' data if the
//     pages are known to be resident, all runs of a request in one pass; otherwise read without
//     blocking) and writes into the page cache. A copy from the head's mapping that overlaps a
//     write is repeated by a read.
//     A request that would block goes elsewhere, so that no other request waits behind it: reads
//     from the device and overwrites with direct I/O to the channel's I/O engine (package aio),
//     the rest, or all without io_uring, to the thread pool. Only the gate of a swap of several
//     disks is waited for. A synchronous channel, which tools and NBD use, blocks instead. No
//     request allocates.
//   - The thread pool: up to 64 goroutines per disk, started when needed, ended by Close. They
//     carry out copy-ups of cold blocks, first writes of blocks that another request is about to
//     own, copy-ups just after a promotion, discards, first writes with direct I/O, and reads
//     whose checksums are not in memory.
//   - The flusher: one goroutine per writable disk, from Open to Close. All syncs and map writes
//     of a head, and all seals, happen on it.
//   - The flusher's timer runs only while a completed write waits for a round. The thread that
//     completes the first write after the begin of a round starts it; the flusher stops it when
//     a round begins. When it expires, a goroutine of the Go runtime asks the flusher for a round
//     and ends. Close and Detach stop the timer before the flusher.
//   - One goroutine per promotion, from Swap to the end of sealing; Close waits for it.
//
// Why views can be swapped under running queues is explained at pins (channel.go) and synchronize
// (view.go); promote.go has the swap. This package knows nothing of virtio: buffers arrive as
// [][]byte and go to the kernel as they are.
package cow
