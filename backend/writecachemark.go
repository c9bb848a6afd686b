package backend

import (
	"cowblk/vhost"
	"cowblk/vhost/virtq"
)

// A front-end that reconnects does not say what it shows its driver as writeback, and the
// process that knew may have been killed. So a queue's in-flight region, which the
// front-end keeps for the next process, has a mark at its end, where the ring keeps
// nothing, while the front-end may show 0. A front-end that changes it harms itself only.
const cacheOffMark = "wce0"

// cacheMark is the place of the mark for a queue that is about to start; nil: it has none.
func cacheMark(q *vhost.Queue) []byte {
	if q.Inflight == nil {
		return nil
	}
	spare := virtq.InflightPadding(q.Inflight, q.InflightNum)
	if len(spare) < len(cacheOffMark) { // of a ring whose size is no power of two
		return nil
	}
	return spare[:len(cacheOffMark)]
}

// recallCache takes up the mark that a process before this one has left.
func (d *Device) recallCache(mark []byte) {
	marked := false
	// A region that cannot be read says nothing; the ring will find that out.
	_ = touch(func() error {
		marked = string(mark) == cacheOffMark
		return nil
	})
	if marked {
		d.cache.recall()
	}
}

// markCaches brings the marks of all running queues up to date.
func (d *Device) markCaches() {
	for _, w := range d.running() {
		w.markCache()
	}
}

// markCache brings the mark of the worker's queue up to date. For the session's
// goroutine, during whose calls the region stays mapped.
func (w *worker) markCache() {
	var mark [len(cacheOffMark)]byte
	if w.dev.cache.frontendShowsOff() {
		copy(mark[:], cacheOffMark)
	}
	_ = touch(func() error {
		copy(w.cacheMark, mark[:])
		return nil
	})
}
