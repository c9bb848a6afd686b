package backend

import (
	"time"

	"cowblk/eventfd"
	"cowblk/vhost/guest"
)

// runScheduledAndWait runs f on the worker's goroutine between two batches and returns true when f
// has returned, or false if the worker has ended.
func (w *worker) runScheduledAndWait(f func()) bool {
	ran := make(chan struct{})
	w.schedule(func() { f(); close(ran) })
	return w.waitFor(ran)
}

// schedule queues f for the worker's goroutine and wakes the worker.
func (w *worker) schedule(f func()) {
	w.scheduledMu.Lock()
	w.scheduled = append(w.scheduled, f)
	w.hasScheduled.Store(true)
	w.scheduledMu.Unlock()
	_ = eventfd.Signal(w.wait.wake)
}

// runScheduled runs the scheduled functions.
func (w *worker) runScheduled() {
	if !w.hasScheduled.Load() {
		return
	}
	w.scheduledMu.Lock()
	functions := w.scheduled
	w.scheduled = nil
	w.hasScheduled.Store(false)
	w.scheduledMu.Unlock()
	for _, f := range functions {
		f()
	}
}

// stop ends the worker after its last request and returns the next avail index, the answer to
// GET_VRING_BASE.
func (w *worker) stop() (base uint16) {
	w.schedule(func() { w.stopping = true })
	w.waitFor(nil)
	return w.ring.Base()
}

// setMemory moves the ring and all later requests to table t. Requests in flight keep their table.
// If the ring does not fit into t, this queue breaks, and no other.
func (w *worker) setMemory(t *guest.Table) {
	w.runScheduledAndWait(func() {
		desc, avail, used, err := w.addr.mapIn(t)
		if err == nil {
			err = w.ring.SetMemory(desc, avail, used)
		}
		if err != nil {
			w.breakQueue(err)
			return
		}
		t.Acquire()
		old := w.mem
		w.mem = &pin{table: t}
		if old.n == 0 {
			old.table.Release()
		}
	})
}

// setCall replaces the eventfd that calls the driver; the worker owns fd.
func (w *worker) setCall(fd int) {
	if !w.runScheduledAndWait(func() { w.replace(&w.call, fd); _ = eventfd.Signal(fd) }) {
		eventfd.Close(fd)
	}
}

// setErr replaces the eventfd that reports a broken queue; the worker owns fd.
func (w *worker) setErr(fd int) {
	if !w.runScheduledAndWait(func() { w.replace(&w.errfd, fd) }) {
		eventfd.Close(fd)
	}
}

// replace replaces an eventfd of the worker. It runs on the worker's goroutine.
func (w *worker) replace(at *int, fd int) {
	w.fdMu.Lock()
	defer w.fdMu.Unlock()
	eventfd.Close(*at)
	*at = fd
}

// unblockAfter is the time a worker may take to answer before unblockEventfds is called. Long I/O
// is the usual reason; the call does no harm then.
const unblockAfter = 100 * time.Millisecond

// waitFor returns true when c is closed, false when the worker has ended.
//
// The front-end shares the flags and counters of its eventfds with this process. A front-end that
// makes a call eventfd blocking again and fills its counter stops the worker in Signal; an empty
// kick eventfd can do the same in Drain. waitFor then frees the worker; else neither the queue nor
// the session would ever end.
func (w *worker) waitFor(c <-chan struct{}) bool {
	t := time.NewTimer(unblockAfter)
	defer t.Stop()
	for {
		select {
		case <-c:
			return true
		case <-w.ended:
			return false
		case <-t.C:
			w.unblockEventfds()
			t.Reset(unblockAfter)
		}
	}
}

// unblockEventfds frees a worker that is blocked on an eventfd.
func (w *worker) unblockEventfds() {
	w.fdMu.Lock()
	defer w.fdMu.Unlock()
	eventfd.UnblockSignal(w.call)
	eventfd.UnblockSignal(w.errfd)
	eventfd.UnblockDrain(w.wait.kick)
}
