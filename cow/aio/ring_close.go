package aio

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// Between two looks of Close at what is still in flight. A transfer that a disk
// is working on cannot be cancelled, and takes about as long as the first.
const (
	closePause    = 50 * time.Microsecond
	closePauseMax = 5 * time.Millisecond
)

// Close implements Engine.
//
// It never waits inside the kernel: a request can be on its way between two
// states when a cancellation looks for it, and is then missed. So cancelling is
// repeated until nothing is left.
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
			// Only the ring's own thread can run what would complete them, and
			// no other can learn when they are through.
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

// withdraw drops what is queued: the kernel has not seen it.
func (r *ring) withdraw() {
	r.sqTail -= r.queued
	r.queued = 0
	r.k.sqTail.Store(r.sqTail)
}

// cancel asks the kernel to end everything in flight: by one request where it
// knows "any", else one by one. What goes wrong is tried again by Close.
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

// submitCancel submits one cancellation and drains, which keeps room for the
// next in the completion ring.
func (r *ring) submitCancel(e sqe) {
	r.push(e)
	_ = r.Submit()
	r.drain(nil)
}
