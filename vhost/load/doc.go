// Package load drives any vhost-user-blk back-end at full speed and reports requests and bytes per
// second, the distribution of latencies, and the CPU time of a request on both sides.
//
// [Run] loads one socket, [RunAll] several at the same time. A queue is one goroutine on its own
// thread, which keeps QueueDepth requests in flight without allocating. Data is not checked, which
// is left to the tests of the disk.
//
// # What is counted
//
// A request is a read or a write of BlockSize bytes; flushes are counted apart. Requests that
// complete within Duration, after Warmup, are counted, whenever they were submitted. Latencies are
// those of the same requests and of the ones in flight at the end, so that a stall there is not
// lost. They run from the start of a batch's submission until its completion is seen, and are
// measured once for requests that complete together.
//
// # CPU time
//
// The driver's is that of the queues' threads. The back-end's is that of all threads of the process
// at the other end of the socket, including those that have ended. Kernel work elsewhere on its
// behalf, such as writing back dirty pages, is in neither.
package load
