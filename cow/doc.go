// Package cow is the engine: it serves reads, writes, flushes, discards and
// write-zeroes of a disk from a stack of copy-on-write layers.
//
// # A stack
//
// A base that never changes, sealed layers that never change again, and one
// head. A layer is a map, one bit per block (set: this layer owns the block), and
// data, block i at offset i. The owner of a block is the newest layer whose bit
// is set, or the base. Package layer keeps the files, package index answers
// "who owns this block, and how many after it" at the same cost at any depth.
//
// # What happens to a block
//
// Owners only rise. For one block of a writable disk, H being the head's number:
//
//	operation            owner < H                            owner = H          owner > H
//	read                 read the owner, zeros beyond it      read the head      take a newer view
//	write, whole block   guard; write; set bit; raise         write              superseded
//	write, part          settle; guard; copy-up; write whole; write              superseded
//	                     set bit; raise
//	discard, whole       guard; punch; set bit; raise         punch              superseded
//	discard, part        nothing                              nothing            nothing
//	write-zeroes, part   as a write of zeros                  write zeros        superseded
//	promote              ————————————————— H becomes H+1, no block changes —————————————————
//
// "Guard" is the range lock of first writes (guard.go), after which the owner is
// looked up again; "settle" waits for writes that began before the promotion
// that made the head (view.go). "Raise" tells the index, last of all: who sees
// the new owner finds its data in place.
//
// # A write finds a newer owner
//
// That happens to a write which began on a view before a promotion, when a
// write of the new view has taken its block meanwhile. The two overlap in time,
// and the newer one replaced the block as a whole (a partial first write would
// have waited for ours, see settle), so ours may be the one that loses: it is
// left out. It stays so after a power cut: the flush that makes ours durable
// covers all heads, and with them the write that replaced it.
//
// # What is durable when
//
// A flush round (flush.go) does, for the head and former heads not yet sealed:
// (a) copy the map pages that changed, with the bits of completed writes;
// (b) sync the data; (c) write the copied pages; (d) sync the map. Without new
// bits (b) is all. So a bit is never durable before its data, and a power cut
// leaves each sector with what was last flushed or a later write's. Flushes that
// wait together share a round; one that comes during a round waits for the next.
// A failed sync turns the disk read-only until it is opened again.
//
// A round also begins by itself when a write that has completed has waited for one for
// Options.FlushInterval (background.go). It fails like any other; one that failed for want
// of space in the map is repeated after the same time.
//
// # What survives the process
//
// The death of the process is no power cut: its guest lives on and reads what it has
// written. The kernel has the data; the bits that are not in the map are in the head's
// shared map, a file in memory (layer/sharedmap.go). The rules:
//
//   - The map in memory is private and alone says who owns a block. No error, eviction,
//     fault or other file changes it. A map page is written from it, never from what was
//     read back: bits on disk only rise.
//   - A bit is in the shared map before its write is acknowledged, in memory that was
//     reserved before. No memory, or no shared map (Options.SharedDir is empty, or it has
//     faulted): the write completes after a flush round, as does every other until that,
//     unless Options.LoseUnflushed is set.
//   - The header of the map names the shared map with a generation of the opening. It is
//     believed only if boot, mounted file system, inodes, generation and the times of
//     change agree, no sync has failed, and the data was not lost by write-back since
//     (layer/unflushed.go, writeback.go). A clean head has none.
//   - One that exists, or should, and cannot be read refuses the open (ErrUnflushed). One
//     that is not believed is as good as none: it is as after a power cut, and what the
//     page cache holds of the data is dropped, not served.
//   - What a stack holds unflushed, of any of its layers, is covered by the next flush
//     (the head) or made durable when it is opened (a former head: sealed, or, beside
//     readers, written to its map). Nothing of it is removed before the header, or the
//     manifest, that replaces it is durable.
//
// So an open costs what the maps own and the shared map holds, not the size of the disk.
// A disk that is handed over (Detach) is opened in the same way, but nothing has to be
// written: its last process has left it in order.
//
// # What is verified
//
// A sealed layer may have checksums of its data (AddSums makes them). What is read
// of one for the first time since it was opened, or comes from the device, is
// compared with them before its request succeeds (verify.go); what differs is an
// error. Base and head have none.
//
// # Who runs where
//
//   - A Channel belongs to one queue and its thread. Submit does there and then
//     what needs no waiting: reads of what is in memory (copied from a mapping of
//     the base or a sealed layer when its pages are known to be there, otherwise
//     read without blocking) and writes into the page cache. What would wait goes
//     on elsewhere, so that nothing stands behind it: reads from the device, and
//     overwrites with direct I/O, in the channel's I/O engine (package aio);
//     the rest in the crew. Only the gate of a cut over several disks is waited
//     for. A synchronous channel, which tools and NBD use, waits instead. No
//     request allocates.
//   - The crew: up to 32 goroutines of a disk, started when needed, ended by Close.
//     Copy-ups of cold blocks, first writes of blocks that another request is about
//     to own, copy-ups just after a promotion, discards, first writes with direct
//     I/O, reads whose checksums are not in memory.
//   - The flusher: one goroutine per writable disk, from Open to Close. All syncs
//     and map writes of a head, and seals, happen on it.
//   - The flusher's timer: it runs only while something that has completed waits for a
//     round. The thread that completes the first write after a round has begun starts
//     it, the flusher stops it when a round begins. When it expires, a goroutine of the
//     Go runtime's asks the flusher for a round, and ends. Close and Leave stop it before
//     they end the flusher; one that expires at that moment does nothing.
//   - One goroutine per promotion, from Swap to Promotion.Done; Close waits for it.
//
// Views, and what makes them safe to swap under running queues, are in view.go;
// the cut itself in promote.go. This package knows nothing of virtio: buffers
// arrive as [][]byte and go to the kernel as they are.
package cow
