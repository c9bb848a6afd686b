// Package load drives any vhost-user-blk back-end as hard as it is told to and
// reports what came of it: requests and bytes per second, the distribution of
// latencies, and what a request cost in CPU time on either side.
//
// [Run] loads one socket, [RunAll] several at the same time. A queue is one
// goroutine on a thread of its own, which keeps QueueDepth requests in flight
// and allocates nothing on the way. Data is never checked: what the tests of
// the disk do is not repeated here.
//
// # What is counted
//
// A request is a read or a write of BlockSize bytes; flushes are counted apart.
// Requests that come back within Duration, after Warmup, are counted, whenever
// they were submitted. Latencies are those of the same requests and of the ones
// in flight at the end, so that a stall there is not lost; they run from when
// the driver turned to submitting a request until it saw it completed, and are
// taken once for the requests that come back together.
//
// # CPU time
//
// The driver's is that of the queues' threads. The back-end's is that of the
// process at the other end of the socket, all of its threads, also those that
// have ended; work that the kernel does elsewhere on its behalf, such as
// writing back dirty pages, is in neither.
package load
