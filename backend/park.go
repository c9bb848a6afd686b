package backend

import (
	"cowblk/cow"
	"cowblk/vhost/blk"
)

// A disk without space can let the requests that need some wait instead of
// failing them: they are parked, which is to stay in flight with nobody working
// on them, until they are resumed. To the guest that is a slow disk. It may go
// with a paused guest, a stopped ring or a process that dies: what is parked
// stays marked in the ring's in-flight region, and the next worker of the ring
// does it. Without such a region, a ring that stops fails what is parked.

// SetParking says what becomes of requests that find no space from now on: they
// are parked, or fail. What is parked already waits for resume.
func (d *Device) SetParking(on bool) { d.parking.Store(on) }

// ResumeParked submits every parked request again, in the order in which they were
// parked, and returns how many that were. They are parked again if there is
// still no space.
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

// parkIfNoSpace parks a request that the engine has given back, if it is one for that.
func (w *worker) parkIfNoSpace(s *slot, io *cow.Request) bool {
	if io.Err == nil || w.broken != nil || !w.dev.parking.Load() || !LacksSpace(io.Err) {
		return false
	}
	w.parked = append(w.parked, s)
	w.dev.parkedNow.Add(1)
	w.dev.observer.parked(io)
	return true
}

// resume is Device.resume on the worker's goroutine.
func (w *worker) resume() int {
	defer w.catchFault(nil)
	if w.broken != nil {
		return 0
	}
	again := make([]*cow.Request, len(w.parked))
	for i, s := range w.parked {
		w.translate(s) // the write cache may have been switched off since
		again[i] = &s.io
	}
	w.parked = nil
	w.dev.parkedNow.Add(int64(-len(again)))
	w.submit(again)
	return len(again)
}

// failParked ends a worker with parked requests: they fail, unless the ring's region
// keeps them for the next worker. Nothing is in the engine any more.
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

// failRequest is abandon for one request.
func (w *worker) failRequest(s *slot) {
	defer w.catchFault(nil)
	defer w.unpin(s)
	if w.broken != nil || w.ring.Tracked() {
		return
	}
	w.stats.completed(&s.io, blk.StatusIOErr)
	w.ring.Push(s.chain.Head, s.req.Finish(blk.StatusIOErr))
}
