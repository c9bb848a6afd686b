package backend

import (
	"cowblk/vhost"
	"cowblk/vhost/virtq"
)

// A front-end that reconnects does not say which writeback it shows its driver, and the process
// that knew may have been killed. So while the front-end may show 0, a mark stands at the end of
// each queue's in-flight region, behind what the ring uses. The front-end keeps that region for the
// next process. A front-end that changes the mark harms itself only.
const cacheOffMark = "wce0"

// cacheMark returns the place of the mark for a queue that is about to start; nil: there is none.
func cacheMark(q *vhost.Queue) []byte {
	if q.Inflight == nil {
		return nil
	}
	spare := virtq.InflightPadding(q.Inflight, q.InflightNum)
	if len(spare) < len(cacheOffMark) { // a ring whose size is no power of two
		return nil
	}
	return spare[:len(cacheOffMark)]
}

// loadCacheMark reads the mark of an earlier process.
func (d *Device) loadCacheMark(mark []byte) {
	marked := false
	// An unreadable region says nothing here; the ring will report it.
	_ = touch(func() error {
		marked = string(mark) == cacheOffMark
		return nil
	})
	if marked {
		d.cache.restore()
	}
}

// markCaches updates the marks of all running queues.
func (d *Device) markCaches() {
	for _, w := range d.running() {
		w.markCache()
	}
}

// markCache updates the mark of the worker's queue. Only the session's goroutine calls it: the
// region stays mapped during its calls.
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
