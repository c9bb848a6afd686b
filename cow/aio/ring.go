package aio

import (
	"fmt"
	"math"
	"time"

	"golang.org/x/sys/unix"
)

// ring is the engine on io_uring.
//
// Neither ring can overflow: there are at least as many submission entries as slots, and twice as
// many completion entries, and an operation holds its slot from Start to Reap. The one additional
// request of Close at a time fits in.
type ring struct {
	slots
	k *rings

	sqTail uint32 // ours; published by Submit
	cqHead uint32 // ours; published by drain
	queued uint32 // entries between the kernel's head and sqTail
	kernel int    // entries that the kernel has taken and not completed

	failed    []failure // operations that the kernel refused
	canMute   bool      // may mute the eventfd
	cancelAny bool      // has IORING_ASYNC_CANCEL_ANY
	single    bool      // the kernel requires one thread
	enabled   bool
	resubmit  bool // an operation is queued for a retry
	closing   bool
	closed    bool
}

// failure is an operation that ended without the kernel.
type failure struct {
	slot  uint32
	errno unix.Errno
}

// cancelData is the user data of a cancellation: no slot has this number.
const cancelData = math.MaxUint64

// Name implements Engine.
func (r *ring) Name() string { return "io_uring" }

// InFlight implements Engine.
func (r *ring) InFlight() int { return r.inUse() }

// Start implements Engine.
func (r *ring) Start(id uint64, write bool, fd int, iov []unix.Iovec, off int64) bool {
	slot, ok := r.take(id, write, fd, iov, off)
	if ok {
		r.enqueue(slot, 0)
	}
	return ok
}

// enqueue writes the submission entry of a slot. There is room: at most one entry per slot is
// between head and tail.
func (r *ring) enqueue(slot uint32, flags uint8) {
	o := &r.ops[slot]
	off := o.off
	if off < 0 {
		// -1 would mean the descriptor's own position. Every other negative offset is EINVAL, as
		// for preadv.
		off = math.MinInt64
	}
	e := sqe{
		opcode: opReadv, flags: flags, fd: o.fd, off: uint64(off),
		addr: uint64(o.iov), len: o.count, userData: uint64(slot),
	}
	if o.write {
		e.opcode = opWritev
	}
	r.push(e)
}

func (r *ring) push(e sqe) {
	r.k.sqes[r.sqTail&uint32(len(r.k.sqes)-1)] = e
	r.sqTail++
	r.queued++
}

// submitRetries is how often, a millisecond apart, a submission is repeated for which the kernel
// had no memory.
const submitRetries = 20

// Submit implements Engine.
func (r *ring) Submit() error {
	if r.queued == 0 {
		return nil
	}
	if !r.enabled {
		if errno := r.k.enable(); errno != 0 {
			return r.refuse(errno)
		}
		r.enabled = true
	}
	// The kernel reads the tail in the following call, on this thread, after the entries before it
	// were written.
	r.k.sqTail.Store(r.sqTail)
	for tries := 0; r.queued > 0; {
		n, errno := r.k.enter(r.queued, 0)
		switch {
		case errno == 0 && n > 0:
			r.queued -= uint32(n)
			r.kernel += n
		case errno == unix.EINTR:
		case (errno == 0 || errno == unix.EAGAIN || errno == unix.EBUSY) && tries < submitRetries:
			tries++
			time.Sleep(time.Millisecond)
		default:
			return r.refuse(errno)
		}
	}
	return nil
}

// refuse takes back the entries that the kernel did not take, and completes them with errno.
func (r *ring) refuse(errno unix.Errno) error {
	if errno == 0 {
		errno = unix.EAGAIN
	}
	n := r.queued
	for ; r.queued > 0; r.queued-- {
		r.sqTail--
		e := &r.k.sqes[r.sqTail&uint32(len(r.k.sqes)-1)]
		if e.userData != cancelData {
			r.failed = append(r.failed, failure{slot: uint32(e.userData), errno: errno})
		}
	}
	r.k.sqTail.Store(r.sqTail)
	if errno == unix.EEXIST {
		return fmt.Errorf("submit %d operations: %w", n, ErrForeignThread)
	}
	return fmt.Errorf("submit %d operations to io_uring: %w", n, errno)
}
