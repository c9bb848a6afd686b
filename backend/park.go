package backend

import (
	"cowblk/cow"
	"cowblk/vhost/blk"
)

// A disk without space can park the requests that need space instead of failing them: they stay in
// flight, and nobody works on them, until they are resumed. The guest sees a slow disk. A parked
// request survives a paused guest, a stopped ring and the death of the process: it stays marked in
// the ring's in-flight region, and the ring's next worker executes it. A ring without such a region
// fails its parked requests when it stops.

// SetParking sets whether later requests without space are parked or fail. Requests that are
// already parked wait for ResumeParked.
func (d *Device) SetParking(on bool) { d.parking.Store(on) }

// ResumeParked submits all parked requests again, in the order in which they were parked, and
// returns their number. Those that still find no space are parked again.
func (d *Device) ResumeParked() (n int) {
	d.stopMu.Lock()
	defer d.stopMu.Unlock()
	for _, w := range d.running() {
		w.runScheduledAndWait(func() { n += w.resume() })
	}
	return n
}

// Parked returns how many requests are parked.
func (d *Device) Parked() (n int) { return int(d.parkedNow.Load()) }

// parkIfNoSpace parks a request that the engine has failed for want of space, and reports whether
// it did.
func (w *worker) parkIfNoSpace(s *slot, io *cow.Request) bool {
	if io.Err == nil || w.broken != nil || !w.dev.parking.Load() || !cow.NoSpace(io.Err) {
		return false
	}
	w.parked = append(w.parked, s)
	w.dev.parkedNow.Add(1)
	w.dev.observer.parked(io)
	return true
}

// resume is Device.ResumeParked on the worker's goroutine.
func (w *worker) resume() int {
	defer w.catchFault(nil)
	if w.broken != nil {
		return 0
	}
	again := make([]*cow.Request, len(w.parked))
	for i, s := range w.parked {
		w.translate(s) // the write cache may have been switched off meanwhile
		again[i] = &s.io
	}
	w.parked = nil
	w.dev.parkedNow.Add(int64(-len(again)))
	w.submit(again)
	return len(again)
}

// failParked ends a worker that has parked requests: they fail, unless the ring's in-flight region
// keeps them for the next worker. The engine is empty.
func (w *worker) failParked() {
	defer w.catchFault(nil)
	for len(w.parked) > 0 {
		s := w.parked[0]
		w.parked = w.parked[1:]
		w.dev.parkedNow.Add(-1)
		w.failRequest(s)
	}
	w.publish()
}

// failRequest is failParked for one request.
func (w *worker) failRequest(s *slot) {
	defer w.catchFault(nil)
	defer w.unpin(s)
	if w.broken != nil || w.ring.Tracked() {
		return
	}
	w.stats.completed(&s.io, blk.StatusIOErr)
	w.ring.Push(s.chain.Head, s.req.Finish(blk.StatusIOErr))
}
