// Package layer is one copy-on-write delta: a map file, which is a header and one bit per block,
// and a data file, in which block i lies at offset i times the block size. A set bit means that the
// layer owns the block. A set bit over a hole in the sparse data file is a block of zeros.
// cow/FORMAT.md specifies the format; cow/doc.go explains the words.
//
// A layer begins as a head (CreateHead), is written through its Data file, and collects the bits of
// completed writes in a Bitmap in memory. This package does not decide when bits become durable:
// the caller runs TakeDirty, SyncData, WriteMap and SyncMap in that order, so that a bit is never
// durable before its data. Seal ends the writable life. A sealed layer is opened read-only, and its
// map is verified against the checksum in its header. AddChecksums gives it checksums of its data,
// behind the map or in a file of their own, which a reader of the data compares (Checksums). A
// crash between two steps of a promotion leaves a head below another head: it may be opened
// read-only, and is read like a head.
//
// The header of a head says whether it was closed in order. The clean mark is cleared, durably,
// when the head is opened for writing, and set again, with the number of bits and the checksum of
// the map, when it is closed. Inspect finds everything that is wrong with a layer, Repair fixes
// what checksums or counts prove.
//
// Every open checks everything it can before it changes anything: a refused open leaves both files
// as they were.
package layer
