// Package aio performs positional reads and writes without blocking their caller. Operations and
// completions are values, joined by an ID that the caller chooses. An Engine has one io_uring, its
// ring, and uses no library. Where the kernel has no io_uring or forbids it, New returns an error.
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
// An engine is used by one goroutine, and starts none. Its ring belongs to the thread that calls
// Submit first, so the goroutine must be locked to a thread (runtime.LockOSThread) while it uses
// the engine. The kernel does the last part of a transfer on that thread, in Reap: it does not
// interrupt the thread at other times. The thread must not end before it has reaped or closed what
// it has started: no other thread can. A transfer that the kernel cannot do without blocking (a
// buffered write, a file system without non-blocking reads) goes to a thread of the kernel.
package aio
