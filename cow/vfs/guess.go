package vfs

import (
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	offFirst   = 100 * time.Millisecond
	offLongest = 10 * time.Second
	// A mapping that was on for so many times as long as it was off before has
	// been worth it: the next time off is the first again, and not twice the
	// last.
	offWorth = 10
)

// guess is what a Mapping does about wrong guesses. It is touched only after a
// copy that was slow.
type guess struct {
	mu     sync.Mutex
	faults func() int64  // major faults of the process so far
	last   int64         // as of the last slow copy
	since  time.Duration // when the mapping was last switched on
	off    time.Duration // how long it was off before
}

func (g *guess) init() {
	g.faults = majorFaults
	g.last = g.faults()
}

// wasSlow decides about a copy that took suspiciously long. Most of them are
// not wrong guesses: the thread had to give up its processor, which on a busy
// machine happens hundreds of times a second. A page that had to be read shows
// as a major fault. They are counted for the whole process, so that two things
// must come together to switch a mapping off by mistake, and no more than that
// is lost.
func (m *Mapping) wasSlow() {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := m.faults()
	if n == m.last {
		return
	}
	m.last = n
	now := time.Since(m.base)
	switch {
	case m.off == 0, now-m.since > offWorth*m.off:
		m.off = offFirst
	default:
		m.off = min(2*m.off, offLongest)
	}
	if m.until.CompareAndSwap(0, int64(now+m.off)) {
		m.pages.clear()
	}
}

// on reports whether a mapping that has been switched off may be used again.
func (m *Mapping) on() bool {
	until := m.until.Load()
	now := time.Since(m.base)
	if int64(now) < until {
		return false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if until != 0 && m.until.CompareAndSwap(until, 0) {
		m.since = now
	}
	return m.until.Load() == 0
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
