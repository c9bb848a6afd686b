package aio

import "golang.org/x/sys/unix"

// Reap appends the completions to dst, in no particular order. It never blocks. Options.EventFD is
// signalled for each completion that comes after Reap: a caller of Reap may then wait for it.
//
// Why no signal is missed: the kernel adds the rest of a transfer to the thread's list of task
// work, sets sqTaskrun if the list was empty, and then signals, unless muted. So after the last
// enter here, unmuted, either the flag was clear and later work is signalled, or the kernel ran the
// list unmuted: completions posted then were signalled, and work added afterwards is, for the list
// was empty. Without deferred task work the kernel also posts entries itself, and is never muted.
//
// The flag can stay set over an empty list (another CPU sets it after its work was run), hence no
// loop until it is clear.
func (e *Engine) Reap(dst []Completion) []Completion {
	dst = e.reapFailed(dst)
	if e.kernel == 0 {
		return dst
	}
	if e.deferredWork() {
		e.mute()
		e.k.enter(0, enterGetEvents)
		e.unmute()
		if e.canMute && e.deferredWork() {
			e.k.enter(0, enterGetEvents)
		}
	}
	dst = e.drain(dst)
	if e.resubmit {
		e.resubmit = false
		// It also submits what the caller has queued meanwhile, so that the retry does not wait for
		// the caller's Submit. Errors become completions.
		_ = e.Submit()
		dst = e.reapFailed(dst)
	}
	return dst
}

// deferredWork reports whether the kernel keeps task work for this thread.
func (e *Engine) deferredWork() bool { return e.k.sqFlags.Load()&sqTaskrun != 0 }

// mute keeps the kernel from signalling the eventfd for completions that are being reaped: each
// signal would wake the caller for nothing.
//
// Only on amd64: the kernel sets sqTaskrun with an atomic "or" and then reads cqFlags, which are
// ordered there. Go orders unmute, a store, and the load of sqTaskrun after it. So one of the two
// sees the other.
func (e *Engine) mute() {
	if e.canMute {
		e.k.cqFlags.Store(cqEventFDDisabled)
	}
}

func (e *Engine) unmute() {
	if e.canMute {
		e.k.cqFlags.Store(0)
	}
}

// drain takes all entries off the completion ring.
func (e *Engine) drain(dst []Completion) []Completion {
	tail := e.k.cqTail.Load() // acquire: the entries before it are complete
	if tail == e.cqHead {
		return dst
	}
	for ; e.cqHead != tail; e.cqHead++ {
		entry := e.k.cqes[e.cqHead&uint32(len(e.k.cqes)-1)]
		e.kernel--
		if entry.userData == cancelData {
			continue
		}
		dst = e.complete(dst, uint32(entry.userData), entry.res)
	}
	e.k.cqHead.Store(tail) // release: they have been read
	return dst
}

// complete ends the operation in slot with the kernel's result, or submits it once more.
func (e *Engine) complete(dst []Completion, slot uint32, res int32) []Completion {
	o := &e.ops[slot]
	if res >= 0 {
		dst = append(dst, Completion{ID: o.id, N: int(res)})
		e.give(slot)
		return dst
	}
	errno := unix.Errno(-res)
	if (errno == unix.EAGAIN || errno == unix.EINTR) && !o.retried && !e.closing {
		// An operation that would block fails instead if the descriptor is O_NONBLOCK and the file
		// system has to block (tmpfs, say), or if a block driver under the file system notices too
		// late. A thread of the kernel may block.
		o.retried = true
		e.resubmit = true
		e.enqueue(slot, sqeAsync)
		return dst
	}
	dst = append(dst, Completion{ID: o.id, Err: errno})
	e.give(slot)
	return dst
}

// reapFailed completes the operations that the kernel never had.
func (e *Engine) reapFailed(dst []Completion) []Completion {
	for _, f := range e.failed {
		dst = append(dst, Completion{ID: e.ops[f.slot].id, Err: f.errno})
		e.give(f.slot)
	}
	e.failed = e.failed[:0]
	return dst
}
