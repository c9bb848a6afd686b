package pagecache

import (
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	disableMin = 100 * time.Millisecond
	disableMax = 10 * time.Second
	// A mapping that was enabled for worthFactor times as long as it was disabled before was
	// useful: it is disabled for disableMin again, not for twice the last time.
	worthFactor = 10
)

// backoff disables a Mapping for a while after a wrong residency mark. It is used only after a slow
// copy.
type backoff struct {
	mu          sync.Mutex
	faults      func() int64  // major faults of the process so far
	lastFaults  int64         // at the last slow copy
	enabledAt   time.Duration // when the mapping was last enabled
	disabledFor time.Duration // how long it was disabled before
}

// afterSlowCopy handles a copy that took suspiciously long. Most slow copies have another cause
// than a wrong mark: the thread was preempted, which happens hundreds of times a second on a busy
// machine. A page that had to be read shows as a major fault. Faults are counted for the whole
// process, so that a mapping may be disabled by mistake when both coincide, which costs speed only.
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
		m.clear()
	}
}

// tryEnable enables the mapping if its time is over, and reports whether it is enabled.
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

// majorFaults returns the number of page faults of this process that waited for a device; always 0
// where the kernel does not count them, and then no wrong mark is detected.
func majorFaults() int64 {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return u.Majflt
}
