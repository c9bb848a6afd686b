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

// CheckFlushInterval returns an error unless d is an interval that Options accepts.
func CheckFlushInterval(d time.Duration) error {
	if d > 0 && (d < MinFlushInterval || d > MaxFlushInterval) {
		return fmt.Errorf("flush interval %v: expected %v to %v, or none", d, MinFlushInterval, MaxFlushInterval)
	}
	return nil
}

// Background rounds bound the time for which a completed write can be lost to a power
// cut when nobody asks for a flush. The first write, discard or write-zeroes that
// completes after a round has begun starts the disk's timer; the next round, whoever
// asked for it, stops the timer; if none comes within the interval, the timer asks for
// one. A disk without unflushed writes has no timer running and is never woken.
//
// Each channel has a mark of its own, so that the path of an overwrite costs one load of
// a word that only its own thread sets: the mark is stored, and the timer started, by
// the first write after a round. A round takes the marks back before it looks at map
// pages or syncs data. Loads and stores of sync/atomic have one order: a write that
// found the mark set had changed its file before the round took the mark back, and is
// covered by it; any other sets the mark again.

// markUnflushed is called when a write, discard or write-zeroes of the channel has changed
// the head, or may have. One with FUA waits for a round anyway.
func (c *Channel) markUnflushed(r *Request) {
	if r.FUA || c.unflushed.Load() {
		return
	}
	c.unflushed.Store(true)
	c.disk.flusher.startTimer()
}

// endWrite is noteWrite and unpinWrite.
func (c *Channel) endWrite(r *Request) {
	c.markUnflushed(r)
	c.unpinWrite()
}

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

// expire asks for a round. It runs on a goroutine of the timer's, and does nothing once
// the flusher is being ended: the notifier may be closed then.
func (f *flusher) expire() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.timerRunning || f.stopping {
		return // a round has begun meanwhile, and could not stop the timer any more
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

// clearUnflushed is how a round begins: what completes from now on starts the timer again.
// The timer comes first: a channel that sets its mark in between starts it anew.
func (f *flusher) clearUnflushed() {
	if f.interval <= 0 {
		return // the marks stay, and cost a load for each write
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

// endRound looks at the outcome of a round. After an error that is not sticky (no space
// for the map, say) what was to be written is still to be written: the timer repeats it.
// background says that the timer has asked for the round: nobody else may hear of the
// error, which is logged once, and not again until a round has succeeded.
func (f *flusher) endRound(err error, background bool) {
	switch {
	case err == nil:
		if f.failing {
			f.failing = false
			f.disk.log.Info("background flushes succeed again")
		}
	case f.disk.failure() != nil: // told by fail
	default:
		f.startTimer()
		if background && !f.failing {
			f.failing = true
			f.disk.log.Warn("a background flush failed: a power cut would lose what it was to write; it is repeated",
				"every", f.interval, "err", err)
		}
	}
}
