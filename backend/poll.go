package backend

import (
	"runtime"
	"time"
)

// busyPoll is the state of an idle worker, between two batches. It belongs to the worker.
type busyPoll struct {
	window pollWindow
	limit  time.Duration // of polling, as it was when the idle period began

	slept bool // polling has ended without work; the worker sleeps
	// The idle period waits for a sync only. A sync takes longer than any polling and needs a
	// processor, so the worker sleeps at once, and the poll window learns nothing.
	syncing bool
	start   time.Time
	begun   time.Duration // since start; the beginning of the idle period
	yielded time.Duration // since start; see yieldIfDue
}

// yieldEvery is the interval at which a goroutine that sleeps in the kernel again and again yields
// to Go's scheduler. The scheduler treats a goroutine that was not rescheduled for 10 ms as greedy:
// sysmon then checks every 70 µs and takes its processor away whenever it sleeps. On two cores that
// cost a flush a quarter of its time.
const yieldEvery = 5 * time.Millisecond

// yieldIfDue yields in a period that waits for a sync. A yield takes about 50 µs.
func (i *busyPoll) yieldIfDue() {
	if i.syncing && i.begun-i.yielded >= yieldEvery {
		i.yielded = i.begun
		runtime.Gosched()
	}
}

// batchesPerClockRead is the number of calls of batch between two reads of the clock, which costs
// as much as several calls. The first calls come before the first read: a driver that spins is in
// time for them.
const batchesPerClockRead = 16

// busyPoll calls batch for as long as the poll window allows, with the driver's kicks still
// suppressed, and reports whether there was work or a scheduled function. Engine and driver do
// nothing extra for it. That saves a trap for the guest (the kick) and a wake-up for the worker.
//
// Go has no PAUSE instruction to spare the core's other thread; a batch that finds nothing only
// loads from the cache.
func (w *worker) busyPoll() bool {
	i := &w.poll
	if i.slept {
		return false // polled, slept, and something else woke the worker
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

// endSleep ends an idle period in which the worker slept.
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
