package backend

import (
	"runtime"
	"time"
)

// busyPoll is a worker between two batches. It belongs to the worker.
type busyPoll struct {
	window pollWindow
	limit  time.Duration // of looking, as it was when the period began

	slept bool // the period's look is over, and nothing had come
	// The period waits for a sync and nothing else: that takes longer than any
	// look, and needs a processor. It is slept through, and the pace learns
	// nothing from it.
	syncing bool
	start   time.Time
	begun   time.Duration // since start; when the period began
	yielded time.Duration // since start; see yield
}

// yieldEvery is how often a goroutine that sleeps in the kernel again and again
// shows itself to Go's scheduler. One that has not been scheduled anew for 10 ms
// counts as greedy: a thread of the runtime (sysmon) then looks every 70 µs and
// takes its processor away whenever it sleeps, and so goes on looking, which on
// two cores cost a flush a quarter of its time.
const yieldEvery = 5 * time.Millisecond

// yieldIfDue does that, in a period that waits for a sync: giving the thread back takes
// some 50 µs.
func (i *busyPoll) yieldIfDue() {
	if i.syncing && i.begun-i.yielded >= yieldEvery {
		i.yielded = i.begun
		runtime.Gosched()
	}
}

// batchesPerClockRead at the ring are done between two looks at the clock, which costs as much
// as several of them, and before the first: a driver that spins comes in time.
const batchesPerClockRead = 16

// busyPoll is what an idle worker does first: it goes on with batch for the time
// that its pace allows, with the driver's kicks still suppressed, and reports
// whether there was work or mail. Nothing waits here: neither the engine nor the
// driver has to do anything but what it does anyway, which is the point, as a
// kick costs a guest a trap and the worker a wake-up.
//
// An instruction to spare the core's other thread (PAUSE) is out of Go's reach;
// a batch that finds nothing is loads that hit the cache.
func (w *worker) busyPoll() bool {
	i := &w.poll
	if i.slept {
		return false // looked, slept, was woken by something else
	}
	if w.broken != nil || w.stopping {
		return false
	}
	if i.limit = time.Duration(w.dev.poll.Load()); i.limit <= 0 {
		i.window = pollWindow{}
		return false
	}
	window := min(i.window.length, i.limit)
	if i.syncing = w.inflight > 0 && w.inflight == w.syncing; i.syncing {
		window = 0
	}
	for first := true; window > 0; first = false {
		for range batchesPerClockRead {
			if w.batch() {
				gap := time.Duration(0)
				if !first {
					gap = time.Since(i.start) - i.begun
				}
				w.stats.polled(gap, true)
				i.window = i.window.next(gap, true, i.limit, 0)
				return true
			}
			if w.hasScheduled.Load() {
				return true
			}
		}
		if first {
			i.begun = time.Since(i.start)
			continue
		}
		if spun := time.Since(i.start) - i.begun; spun >= window {
			w.stats.polled(spun, false)
			i.slept = true
			return false
		}
	}
	i.begun = time.Since(i.start)
	i.slept = true
	return false
}

// endSleep ends an idle period that was slept through.
func (w *worker) endSleep() {
	i := &w.poll
	if !i.slept {
		return
	}
	i.slept = false
	if i.syncing {
		return
	}
	wake := time.Duration(0)
	if w.wait.timer {
		wake = 2 * kicklessPoll * time.Millisecond
	}
	i.window = i.window.next(time.Since(i.start)-i.begun, false, i.limit, wake)
}
