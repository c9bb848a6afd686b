package aio

import "golang.org/x/sys/unix"

// Reap implements Engine.
//
// Why no signal is missed: the kernel adds the rest of a transfer to the thread's list of task
// work, sets sqTaskrun if the list was empty, and then signals, unless muted. So after the last
// enter here, unmuted, either the flag was clear and later work is signalled, or the kernel ran the
// list unmuted: completions posted then were signalled, and work added afterwards is, for the list
// was empty. Without deferred task work the kernel also posts entries itself, and is never muted.
//
// The flag can stay set over an empty list (another CPU sets it after its work was run), hence no
// loop until it is clear.
func (r *ring) Reap(dst []Completion) []Completion {
	dst = r.reapFailed(dst)
	if r.kernel == 0 {
		return dst
	}
	if r.deferredWork() {
		r.mute()
		r.k.enter(0, enterGetEvents)
		r.unmute()
		if r.canMute && r.deferredWork() {
			r.k.enter(0, enterGetEvents)
		}
	}
	dst = r.drain(dst)
	if r.resubmit {
		r.resubmit = false
		// It also submits what the caller has queued meanwhile, so that the retry does not wait for
		// the caller's Submit. Errors become completions.
		_ = r.Submit()
		dst = r.reapFailed(dst)
	}
	return dst
}

// deferredWork reports whether the kernel keeps task work for this thread.
func (r *ring) deferredWork() bool { return r.k.sqFlags.Load()&sqTaskrun != 0 }

// mute keeps the kernel from signalling the eventfd for completions that are being reaped: each
// signal would wake the caller for nothing.
//
// Only on amd64: the kernel sets sqTaskrun with an atomic "or" and then reads cqFlags, which are
// ordered there. Go orders unmute, a store, and the load of sqTaskrun after it. So one of the two
// sees the other.
func (r *ring) mute() {
	if r.canMute {
		r.k.cqFlags.Store(cqEventFDDisabled)
	}
}

func (r *ring) unmute() {
	if r.canMute {
		r.k.cqFlags.Store(0)
	}
}

// drain takes all entries off the completion ring.
func (r *ring) drain(dst []Completion) []Completion {
	tail := r.k.cqTail.Load() // acquire: the entries before it are complete
	if tail == r.cqHead {
		return dst
	}
	for ; r.cqHead != tail; r.cqHead++ {
		e := r.k.cqes[r.cqHead&uint32(len(r.k.cqes)-1)]
		r.kernel--
		if e.userData == cancelData {
			continue
		}
		dst = r.complete(dst, uint32(e.userData), e.res)
	}
	r.k.cqHead.Store(tail) // release: they have been read
	return dst
}

// complete ends the operation in slot with the kernel's result, or submits it once more.
func (r *ring) complete(dst []Completion, slot uint32, res int32) []Completion {
	o := &r.ops[slot]
	if res >= 0 {
		dst = append(dst, Completion{ID: o.id, N: int(res)})
		r.give(slot)
		return dst
	}
	errno := unix.Errno(-res)
	if (errno == unix.EAGAIN || errno == unix.EINTR) && !o.retried && !r.closing {
		// An operation that would block fails instead if the descriptor is O_NONBLOCK and the file
		// system has to block (tmpfs, say), or if a block driver under the file system notices too
		// late. A thread of the kernel may block.
		o.retried = true
		r.resubmit = true
		r.enqueue(slot, sqeAsync)
		return dst
	}
	dst = append(dst, Completion{ID: o.id, Err: errno})
	r.give(slot)
	return dst
}

// reapFailed completes the operations that the kernel never had.
func (r *ring) reapFailed(dst []Completion) []Completion {
	for _, f := range r.failed {
		dst = append(dst, Completion{ID: r.ops[f.slot].id, Err: f.errno})
		r.give(f.slot)
	}
	r.failed = r.failed[:0]
	return dst
}
