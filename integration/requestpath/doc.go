// Command requestpath performs a few requests of at most 4 KiB, and promotions of one disk. It
// writes the coverage counters of each to a directory below its argument. Its test counts the
// source files that each passes, and compares the counts with the tables of
// docs/internals/request.md and docs/internals/promotion.md.
//
// Whatever runs between the start and the end of a record counts: goroutines beside the request
// too, such as a worker that polls. The test leaves their files out.
package main
