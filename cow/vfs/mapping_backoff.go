package vfs

import (
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	disableMin = 100 * time.Millisecond
	disableMax = 10 * time.Second
	// A mapping that was on for so many times as long as it was off before has
	// been worth it: the next time off is the first again, and not twice the
	// last.
	worthFactor = 10
)

// backoff is what a Mapping does about wrong guesses. It is touched only after a
// copy that was slow.
type backoff struct {
	mu          sync.Mutex
	faults      func() int64  // major faults of the process so far
	lastFaults  int64         // as of the last slow copy
	enabledAt   time.Duration // when the mapping was last switched on
	disabledFor time.Duration // how long it was off before
}

func (g *backoff) init() {
	g.faults = majorFaults
	g.lastFaults = g.faults()
}

// afterSlowCopy decides about a copy that took suspiciously long. Most of them are
// not wrong guesses: the thread had to give up its processor, which on a busy
// machine happens hundreds of times a second. A page that had to be read shows
// as a major fault. They are counted for the whole process, so that two things
// must come together to switch a mapping off by mistake, and no more than that
// is lost.
func (m *Mapping) afterSlowCopy() {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := m.faults()
	if n == m.lastFaults {
		return
	}
	m.lastFaults = n
	now := time.Since(m.base)
	switch {
	case m.disabledFor == 0, now-m.enabledAt > worthFactor*m.disabledFor:
		m.disabledFor = disableMin
	default:
		m.disabledFor = min(2*m.disabledFor, disableMax)
	}
	if m.disabledUntil.CompareAndSwap(0, int64(now+m.disabledFor)) {
		m.pages.clear()
	}
}

// tryEnable reports whether a mapping that has been switched off may be used again.
func (m *Mapping) tryEnable() bool {
	disabledUntil := m.disabledUntil.Load()
	now := time.Since(m.base)
	if int64(now) < disabledUntil {
		return false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if disabledUntil != 0 && m.disabledUntil.CompareAndSwap(disabledUntil, 0) {
		m.enabledAt = now
	}
	return m.disabledUntil.Load() == 0
}

// majorFaults is the number of page faults of this process that had to wait for
// a device; 0 always where the kernel does not say, and then no guess is ever
// found to be wrong.
func majorFaults() int64 {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return u.Majflt
}
