package cow

import (
	"fmt"
	"time"
)

// Limits of Options.FlushInterval.
const (
	DefaultFlushInterval = 30 * time.Second
	MinFlushInterval     = 100 * time.Millisecond
	MaxFlushInterval     = 24 * time.Hour
)

// CheckFlushInterval returns an error unless Options accepts d as an interval.
func CheckFlushInterval(d time.Duration) error {
	if d > 0 && (d < MinFlushInterval || d > MaxFlushInterval) {
		return fmt.Errorf("flush interval %v: expected %v to %v, or none", d, MinFlushInterval,
			MaxFlushInterval)
	}
	return nil
}

// Background rounds bound the time for which a completed write can be lost to a power cut when no
// guest asks for a flush. The first write, discard or write-zeroes that completes after the begin
// of a round starts the disk's timer. The next round stops it. If none begins within the interval,
// the timer asks for one. A disk without unflushed writes has no timer running and is never woken.
//
// Each channel has a mark of its own (Channel.unflushed), so that an overwrite costs one load of a
// word that only its own thread sets: the first write after a round stores the mark and starts the
// timer. A round clears the marks before it copies map pages or syncs data. Loads and stores of
// sync/atomic have one order. A write that found the mark set had changed its file before the round
// cleared the mark, and the round covers it; any other write sets the mark again.

// startTimer makes sure that a round begins within the interval.
func (f *flusher) startTimer() {
	if f.interval <= 0 {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.timerRunning || f.stopping || f.disk.failure() != nil:
		return
	case f.timer == nil:
		f.timer = time.AfterFunc(f.interval, f.expire)
	default:
		f.timer.Reset(f.interval)
	}
	f.timerRunning = true
}

// expire asks for a round. It runs on a goroutine of the timer. It does nothing once the flusher is
// being stopped: the notifier may be closed by then.
func (f *flusher) expire() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.timerRunning || f.stopping {
		return // a round has begun and was too late to stop the timer
	}
	f.timerExpired = true
	f.notifier.notify()
}

// stopTimer stops the timer; f.mu is held.
func (f *flusher) stopTimer() {
	if f.timerRunning {
		f.timer.Stop()
	}
	f.timerRunning, f.timerExpired = false, false
}

// clearUnflushed begins a round: a write that completes from now on starts the timer again. The
// timer is stopped first, so that a channel that sets its mark in between starts it anew.
func (f *flusher) clearUnflushed() {
	if f.interval <= 0 {
		return // the marks stay set, and cost each write a load
	}
	f.mu.Lock()
	f.stopTimer()
	f.mu.Unlock()
	for _, c := range *f.disk.channels.Load() {
		if c.unflushed.Load() {
			c.unflushed.Store(false)
		}
	}
}

// endRound handles the outcome of a round. After an error that is not sticky (no space for the map,
// say) the changes are still dirty: the timer repeats the round. background: the timer has asked
// for the round, so no request returns the error. It is logged once, and not again until a round
// has succeeded: a limit of the rate, as in package loglimit, would repeat it.
func (f *flusher) endRound(err error, background bool) {
	switch {
	case err == nil:
		if f.failing {
			f.failing = false
			f.disk.log.Info("background flushes succeed again")
		}
	case f.disk.failure() != nil: // fail has logged it
	default:
		f.startTimer()
		if background && !f.failing {
			f.failing = true
			f.disk.log.Warn("a background flush failed and is repeated: a power cut would lose unflushed writes",
				"every", f.interval, "err", err)
		}
	}
}
