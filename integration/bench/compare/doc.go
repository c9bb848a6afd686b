// Package compare measures cowblk beside what people would use instead, on this machine:
// it starts every contender itself on the same files, in one run.
//
// Contenders take turns, several rounds of them, so that whatever the machine
// does besides meets all alike; every second round goes backwards. Ratios are
// taken within each round (package report). Servers are started anew for each round,
// and read all of their disks first. Data is in the page cache unless the
// workload says otherwise, and what was written is flushed before the next turn.
//
// The base image is written, dropped from the page cache and read again in
// order, as an image that has been on the disk for long would be. Everything that
// is overwritten (heads, the plain file, the qcow2 overlay) was filled by its own
// server with the same requests. Sealed layers and the images of a qcow2 chain
// own the same few extents.
//
// All files lie in one directory, which is removed at the end, also after an
// error or an interruption; so do processes end, which this one waits for.
package compare
