// Package aio performs positional reads and writes without blocking their caller. Operations and
// completions are values, joined by an ID that the caller chooses. Two engines implement one
// interface and pass one conformance suite: a ring (io_uring, without a library) and, where the
// kernel has none or forbids it, a pool of threads.
//
// # Memory
//
// The iovec array of an operation is copied when it starts, into anonymous memory outside Go's
// heap, one slot for each operation in flight: the kernel may read it long after the call. It is
// copied as numbers, not as pointers, so it does not keep the buffers alive: the caller keeps them
// alive and in place until their operation was reaped, or Close has returned nil. Buffers on Go's
// heap qualify, for the heap does not move; so does mapped memory.
//
// # Threads
//
// An engine is used by one goroutine. A ring starts no goroutine. It belongs to the thread that
// calls Submit first, so its goroutine must be locked to a thread (runtime.LockOSThread) while it
// uses the ring. The kernel does the last part of a transfer on that thread, in Reap: it does not
// interrupt the thread at other times. The thread must not end before it has reaped or closed what
// it has started: no other thread can. A transfer that the kernel cannot do without blocking (a
// buffered write, a file system without non-blocking reads) goes to a thread of the kernel.
//
// Submit starts the pool's goroutines when there is more to do than there are idle ones, up to
// poolThreads. Each owns the operation that it has taken from the queue. All end in Close, which
// waits for them. An idle goroutine occupies no thread of the operating system.
package aio
