// Package aio carries positional reads and writes out without their caller
// waiting for them. Operations and completions are values, joined by an ID that
// the caller chooses. There are two engines behind one interface, with one
// conformance suite over both: a ring (io_uring, spoken to by hand) and, where
// the kernel has none or forbids it, a pool of threads.
//
// # Memory
//
// The iovec array of an operation is copied when it starts, into anonymous
// memory outside Go's heap, one slot for each operation in flight: the kernel
// may read it long after the call. It is copied as numbers, not as pointers, so
// the garbage collector does not see the buffers through it: the caller keeps
// them alive and in place until their operation has been reaped, or Close has
// returned nil. Buffers on Go's heap qualify, for that does not move; so does
// mapped memory.
//
// # Threads
//
// An engine is used by one goroutine. A ring starts no goroutine; it belongs to
// the thread that calls Submit first, so its goroutine is locked to a thread
// (runtime.LockOSThread) for as long as it uses the ring. The kernel finishes a
// transfer's bookkeeping on that same thread, in Reap: nothing interrupts it at
// any other time. So that thread must not end before it has reaped or closed
// what it has started: nobody else could. A transfer that the kernel cannot do without waiting (a
// buffered write, a file system without non-blocking reads) goes to a thread of
// the kernel's own.
//
// The pool's goroutines, threads, are started by Submit when there is more to
// do than idle ones, up to poolThreads; each owns the operation that it has
// taken from the queue; all end in Close, which waits for them. An idle one
// keeps no thread of the operating system.
package aio
