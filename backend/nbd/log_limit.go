package nbd

import (
	"log/slog"
	"sync"
	"time"
)

// Clients can cause any number of log lines. At most logBurst lines in logWindow are written; the
// others are counted.
const (
	logBurst  = 20
	logWindow = 10 * time.Second
)

// limitedLog is a rate-limited logger for events that clients cause.
type limitedLog struct {
	log *slog.Logger

	mu      sync.Mutex
	since   time.Time // start of the window
	lines   int       // in it
	dropped int
}

func (l *limitedLog) info(msg string, args ...any) {
	if l.allow() {
		l.log.Info(msg, args...)
	}
}

func (l *limitedLog) warn(msg string, args ...any) {
	if l.allow() {
		l.log.Warn(msg, args...)
	}
}

func (l *limitedLog) allow() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if now := time.Now(); now.Sub(l.since) >= logWindow {
		if l.dropped > 0 {
			l.log.Warn("NBD log lines suppressed", "lines", l.dropped)
		}
		l.since, l.lines, l.dropped = now, 0, 0
	}
	if l.lines >= logBurst {
		l.dropped++
		return false
	}
	l.lines++
	return true
}
