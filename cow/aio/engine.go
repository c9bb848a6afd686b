package aio

import (
	"fmt"
	"math"

	"golang.org/x/sys/unix"
)

// Engine performs positional I/O on io_uring without blocking its caller. It is for one goroutine;
// the package documentation says on which thread.
//
// Neither ring can overflow: there are at least as many submission entries as slots, and twice as
// many completion entries, and an operation holds its slot from Start to Reap. The one additional
// request of Close at a time fits in.
type Engine struct {
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

// InFlight returns the number of operations queued, in the kernel, or completed and not reaped.
func (e *Engine) InFlight() int { return e.inUse() }

// Start queues an operation on fd at off, in bytes, with the memory of iov. Nothing reaches the
// kernel before Submit. iov is copied; its memory, and fd, must stay until the completion was
// reaped. False: the engine's depth of operations is in flight, iov is longer than MaxIovecs, or
// the engine is closed.
func (e *Engine) Start(id uint64, write bool, fd int, iov []unix.Iovec, off int64) bool {
	slot, ok := e.take(id, write, fd, iov, off)
	if ok {
		e.enqueue(slot, 0)
	}
	return ok
}

// enqueue writes the submission entry of a slot. There is room: at most one entry per slot is
// between head and tail.
func (e *Engine) enqueue(slot uint32, flags uint8) {
	o := &e.ops[slot]
	off := o.off
	if off < 0 {
		// -1 would mean the descriptor's own position. Every other negative offset is EINVAL, as
		// for preadv.
		off = math.MinInt64
	}
	entry := sqe{
		opcode: opReadv, flags: flags, fd: o.fd, off: uint64(off),
		addr: uint64(o.iov), len: o.count, userData: uint64(slot),
	}
	if o.write {
		entry.opcode = opWritev
	}
	e.push(entry)
}

func (e *Engine) push(entry sqe) {
	e.k.sqes[e.sqTail&uint32(len(e.k.sqes)-1)] = entry
	e.sqTail++
	e.queued++
}

// Submit passes everything queued to the kernel, usually in one system call, and in none if nothing
// is queued. Each operation started gets exactly one completion. An error says why the kernel
// refused some operations; these complete with it.
func (e *Engine) Submit() error {
	if e.queued == 0 {
		return nil
	}
	if !e.enabled {
		if errno := e.k.enable(); errno != 0 {
			return e.refuse(errno)
		}
		e.enabled = true
	}
	// The kernel reads the tail in the following call, on this thread, after the entries before it
	// were written.
	e.k.sqTail.Store(e.sqTail)
	n, errno := e.k.submit(int(e.queued))
	e.queued -= uint32(n)
	e.kernel += n
	if errno != 0 {
		return e.refuse(errno)
	}
	return nil
}

// refuse takes back the entries that the kernel did not take, and completes them with errno.
func (e *Engine) refuse(errno unix.Errno) error {
	n := e.queued
	for ; e.queued > 0; e.queued-- {
		e.sqTail--
		entry := &e.k.sqes[e.sqTail&uint32(len(e.k.sqes)-1)]
		if entry.userData != cancelData {
			e.failed = append(e.failed, failure{slot: uint32(entry.userData), errno: errno})
		}
	}
	e.k.sqTail.Store(e.sqTail)
	if errno == unix.EEXIST {
		return fmt.Errorf("submit %d operations: %w", n, ErrForeignThread)
	}
	return fmt.Errorf("submit %d operations to io_uring: %w", n, errno)
}
