package aio

import "golang.org/x/sys/unix"

// Reap implements Engine.
//
// Why no signal is missed. The kernel adds the work of finishing a transfer to
// the thread's list, sets sqTaskrun if the list was empty, and then signals,
// unless muted. So after the last enter here, unmuted, either the flag showed
// nothing and whatever comes next is signalled, or the kernel ran the list
// unmuted: what it posted then has been signalled, and what was added after it
// is, for the list was empty. Without deferral it also posts entries itself, and
// is never muted.
//
// The flag can be left set over an empty list (the other CPU sets it after its
// work has been run already), hence no loop until it is clear.
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
		// Takes along what the caller has queued meanwhile, so that no retry
		// waits for its Submit. An error turns into completions.
		_ = r.Submit()
		dst = r.reapFailed(dst)
	}
	return dst
}

// deferredWork reports whether the kernel has work that it keeps for this
// thread to run.
func (r *ring) deferredWork() bool { return r.k.sqFlags.Load()&sqTaskrun != 0 }

// mute keeps the kernel from signalling the eventfd for completions that are
// being reaped right now; each would cost its caller a wake-up for nothing.
//
// Only on amd64: the kernel sets sqTaskrun with an atomic "or" and then looks at
// cqFlags, which are ordered there. unmute, a store, and the look at sqTaskrun
// after it are ordered by Go. So one of both sees the other.
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

// complete ends the operation in slot with the kernel's result, or has it done
// once more.
func (r *ring) complete(dst []Completion, slot uint32, res int32) []Completion {
	o := &r.ops[slot]
	if res >= 0 {
		dst = append(dst, Completion{ID: o.id, N: int(res)})
		r.give(slot)
		return dst
	}
	errno := unix.Errno(-res)
	if (errno == unix.EAGAIN || errno == unix.EINTR) && !o.retried && !r.closing {
		// What would have to wait fails instead where the descriptor is
		// O_NONBLOCK and the file system cannot but wait (tmpfs, say), or a
		// block driver under the file system says so too late. A thread of the
		// kernel's may wait.
		o.retried = true
		r.resubmit = true
		r.enqueue(slot, sqeAsync)
		return dst
	}
	dst = append(dst, Completion{ID: o.id, Err: errno})
	r.give(slot)
	return dst
}

// reapFailed takes the operations that never were in the kernel.
func (r *ring) reapFailed(dst []Completion) []Completion {
	for _, f := range r.failed {
		dst = append(dst, Completion{ID: r.ops[f.slot].id, Err: f.errno})
		r.give(f.slot)
	}
	r.failed = r.failed[:0]
	return dst
}
