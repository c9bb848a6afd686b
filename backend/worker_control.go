package backend

import "cowblk/vhost/guest"

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
	signal(w.wait.wake)
}

// runScheduled runs the scheduled functions.
func (w *worker) runScheduled() {
	if !w.hasScheduled.Load() {
		return
	}
	w.scheduledMu.Lock()
	mail := w.scheduled
	w.scheduled = nil
	w.hasScheduled.Store(false)
	w.scheduledMu.Unlock()
	for _, f := range mail {
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
	if !w.runScheduledAndWait(func() { w.replace(&w.call, fd); signal(fd) }) {
		closeFD(fd)
	}
}

// setErr replaces the eventfd that reports a broken queue; the worker owns fd.
func (w *worker) setErr(fd int) {
	if !w.runScheduledAndWait(func() { w.replace(&w.errfd, fd) }) {
		closeFD(fd)
	}
}

// replace replaces an eventfd of the worker. It runs on the worker's goroutine.
func (w *worker) replace(at *int, fd int) {
	w.fdMu.Lock()
	defer w.fdMu.Unlock()
	closeFD(*at)
	*at = fd
}
