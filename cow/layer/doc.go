// Package layer is one copy-on-write delta: a map file, which is a header and
// one bit per block, and a data file in which block i lies at offset i times
// the block size. A set bit means that the layer owns the block; a set bit
// over a hole in the sparse data file is a block of zeros. cow/FORMAT.md is
// the format for readers in any language.
//
// A layer is born a head (CreateHead), is written through its Data file, and
// collects the bits of completed writes in a Bitmap in memory. Nothing here
// decides when bits become durable: the caller runs TakeDirty, SyncData,
// WriteMap, SyncMap in that order, so that a bit is never durable before its
// data. Seal ends the writable life; a sealed layer is opened read-only and
// its map is verified against the checksum in its header; AddSums gives it checksums
// of its data, behind the map or in a file of their own, which who reads the data
// compares (Sums). A head below another head is what a crash between two steps of a
// promotion leaves: it may be opened read-only too, and is then read like a head's.
//
// A head says in its header whether it was closed in order: the mark goes, durably,
// when it is opened for writing, once, and comes back with the number of its bits
// and the checksum of its map when it is closed. Inspect finds everything that is
// wrong with a layer, Repair mends what is proven.
//
// Every open checks everything it can before it changes anything: a refused
// open leaves both files as they were.
package layer
