package aio

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// Pauses of Close between two checks of what is in flight. A transfer on a disk cannot be
// cancelled, and takes about as long as the first pause.
const (
	closePause    = 50 * time.Microsecond
	closePauseMax = 5 * time.Millisecond
)

// Close drops what is in flight: operations not submitted never happen; others are cancelled if the
// kernel can, or waited for, and their completions are lost. After it has returned nil, nothing
// accesses callers' memory any more. With nothing in flight any thread may call it; otherwise it
// returns ErrForeignThread on another thread than the ring's, and the engine stays open. A second
// Close does nothing.
//
// It never blocks in the kernel: a cancellation misses a request that is between two states at that
// moment. So cancelling is repeated until nothing is left.
func (e *Engine) Close() error {
	if e.closed {
		return nil
	}
	e.closing = true
	e.withdraw()
	for pause := closePause; e.kernel > 0; pause = min(2*pause, closePauseMax) {
		e.cancel()
		_, errno := e.k.enter(0, enterGetEvents)
		e.drain(nil)
		if e.kernel == 0 {
			break
		}
		if errno == unix.EEXIST {
			// Only the ring's own thread can run the task work that completes them, and no other
			// thread can learn when they end.
			return fmt.Errorf("close an io_uring with %d operations in the kernel: %w", e.kernel,
				ErrForeignThread)
		}
		time.Sleep(pause)
	}
	e.closed = true
	e.k.release()
	e.slots.release()
	e.failed = nil
	return nil
}

// withdraw drops what is queued and not submitted.
func (e *Engine) withdraw() {
	e.sqTail -= e.queued
	e.queued = 0
	e.k.sqTail.Store(e.sqTail)
}

// cancel asks the kernel to cancel everything in flight: by one request where it knows "any",
// otherwise one by one. Close repeats what fails.
func (e *Engine) cancel() {
	if e.cancelAny {
		e.submitCancel(sqe{opcode: opAsyncCancel, fd: -1, opFlags: cancelAny | cancelAll,
			userData: cancelData})
		return
	}
	free := make([]bool, len(e.ops))
	for _, slot := range e.free {
		free[slot] = true
	}
	for slot := range e.ops {
		if !free[slot] {
			e.submitCancel(sqe{opcode: opAsyncCancel, fd: -1, addr: uint64(slot),
				userData: cancelData})
		}
	}
}

// submitCancel submits one cancellation and drains the completion ring to make room for the next.
func (e *Engine) submitCancel(entry sqe) {
	e.push(entry)
	_ = e.Submit()
	e.drain(nil)
}
