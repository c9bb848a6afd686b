package cow

import (
	"runtime/debug"
	"sync"
)

// Limits of a disk's crew.
const (
	maxHands  = 32 // as many requests of a disk wait at once
	idleHands = 4  // stay when there is nothing to do
)

// crew carries out what would make a queue's thread wait: copy-ups of what is not
// in memory, first writes past the page cache or of blocks that another request
// is about to own, discards. Its hands are goroutines, each
// with a synchronous channel of its own, started when there is work and ended by
// the lack of it, the last ones by stop.
type crew struct {
	disk *Disk

	mu       sync.Mutex
	cond     sync.Cond
	work     requestList
	hands    int
	idle     int
	stopping bool
	ended    sync.WaitGroup
}

func newCrew(d *Disk) *crew {
	w := &crew{disk: d}
	w.cond.L = &w.mu
	return w
}

// add queues r. Its completion comes through its channel.
func (w *crew) add(r *Request) {
	w.mu.Lock()
	w.work.push(r)
	switch {
	case w.idle > 0:
		// Taken off the count here, so that the next request counts the rest.
		w.idle--
		w.cond.Signal()
	case w.hands < maxHands:
		w.hands++
		w.ended.Add(1)
		go w.hand()
	}
	w.mu.Unlock()
}

// hand is one goroutine of the crew.
func (w *crew) hand() {
	defer w.ended.Done()
	// The thread's own setting would let a fault on a guest's memory end the
	// process: see Channel.perform.
	debug.SetPanicOnFault(true)
	c := w.disk.makeChannel(-1)
	if w.disk.addChannel(c, 0) == nil {
		defer w.disk.dropChannel(c, 0)
	}
	for {
		r := w.next()
		if r == nil {
			return
		}
		r.Err = c.perform(r)
		if r.waitsForFlush() {
			w.disk.flusher.add(r)
		} else {
			r.complete()
		}
	}
}

// next waits for a request; nil ends the hand.
func (w *crew) next() *Request {
	w.mu.Lock()
	defer w.mu.Unlock()
	for {
		if r := w.work.pop(); r != nil {
			return r
		}
		if w.stopping || w.idle >= idleHands {
			w.hands--
			return nil
		}
		w.idle++
		w.cond.Wait()
	}
}

// stop ends the hands. No request is left and none will come.
func (w *crew) stop() {
	w.mu.Lock()
	w.stopping = true
	w.cond.Broadcast()
	w.mu.Unlock()
	w.ended.Wait()
}
