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

// Close implements Engine.
//
// It never blocks in the kernel: a cancellation misses a request that is between two states at that
// moment. So cancelling is repeated until nothing is left.
func (r *ring) Close() error {
	if r.closed {
		return nil
	}
	r.closing = true
	r.withdraw()
	for pause := closePause; r.kernel > 0; pause = min(2*pause, closePauseMax) {
		r.cancel()
		_, errno := r.k.enter(0, enterGetEvents)
		r.drain(nil)
		if r.kernel == 0 {
			break
		}
		if errno == unix.EEXIST {
			// Only the ring's own thread can run the task work that completes them, and no other
			// thread can learn when they end.
			return fmt.Errorf("close an io_uring with %d operations in the kernel: %w", r.kernel, ErrForeignThread)
		}
		time.Sleep(pause)
	}
	r.closed = true
	r.k.release()
	r.slots.release()
	r.failed = nil
	return nil
}

// withdraw drops what is queued and not submitted.
func (r *ring) withdraw() {
	r.sqTail -= r.queued
	r.queued = 0
	r.k.sqTail.Store(r.sqTail)
}

// cancel asks the kernel to cancel everything in flight: by one request where it knows "any",
// otherwise one by one. Close repeats what fails.
func (r *ring) cancel() {
	if r.cancelAny {
		r.submitCancel(sqe{opcode: opAsyncCancel, fd: -1, opFlags: cancelAny | cancelAll, userData: cancelData})
		return
	}
	free := make([]bool, len(r.ops))
	for _, slot := range r.free {
		free[slot] = true
	}
	for slot := range r.ops {
		if !free[slot] {
			r.submitCancel(sqe{opcode: opAsyncCancel, fd: -1, addr: uint64(slot), userData: cancelData})
		}
	}
}

// submitCancel submits one cancellation and drains the completion ring to make room for the next.
func (r *ring) submitCancel(e sqe) {
	r.push(e)
	_ = r.Submit()
	r.drain(nil)
}
