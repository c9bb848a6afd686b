package loglimit

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// A guest or front-end can cause the same log line at any rate. A logger has room for Burst lines
// with one message, and for one more every Interval. The next line that is logged counts the lost
// ones in its attribute "suppressed".
const (
	Burst    = 10
	Interval = 10 * time.Second
)

// logLimiter is a slog.Handler that limits repeated lines. Debug lines pass.
type logLimiter struct {
	next     slog.Handler
	messages *messageLimits // shared by all handlers that descend from one
}

// messageLimits has a limit for each message. Messages are constants of the source, so there are
// few.
type messageLimits struct {
	now func() time.Time

	mu        sync.Mutex
	byMessage map[string]*messageLimit
}

type messageLimit struct {
	rate       *rate.Limiter
	suppressed int64
}

// New returns a logger for lines that others cause.
func New(log *slog.Logger) *slog.Logger {
	m := &messageLimits{now: time.Now, byMessage: map[string]*messageLimit{}}
	return slog.New(&logLimiter{next: log.Handler(), messages: m})
}

// Enabled, WithAttrs, WithGroup and Handle implement slog.Handler.
func (l *logLimiter) Enabled(ctx context.Context, level slog.Level) bool {
	return l.next.Enabled(ctx, level)
}

func (l *logLimiter) WithAttrs(a []slog.Attr) slog.Handler {
	return &logLimiter{next: l.next.WithAttrs(a), messages: l.messages}
}

func (l *logLimiter) WithGroup(name string) slog.Handler {
	return &logLimiter{next: l.next.WithGroup(name), messages: l.messages}
}

func (l *logLimiter) Handle(ctx context.Context, r slog.Record) error {
	if r.Level < slog.LevelInfo {
		return l.next.Handle(ctx, r)
	}
	ok, suppressed := l.messages.allow(r.Message)
	if !ok {
		return nil
	}
	if suppressed > 0 {
		r = r.Clone()
		r.AddAttrs(slog.Int64("suppressed", suppressed))
	}
	return l.next.Handle(ctx, r)
}

// allow reports whether a line with this message may be logged, and how many were not since the
// last one that was.
func (m *messageLimits) allow(message string) (ok bool, suppressed int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	l := m.byMessage[message]
	if l == nil {
		l = &messageLimit{rate: rate.NewLimiter(rate.Every(Interval), Burst)}
		m.byMessage[message] = l
	}
	if !l.rate.AllowN(m.now(), 1) {
		l.suppressed++
		return false, 0
	}
	suppressed, l.suppressed = l.suppressed, 0
	return true, suppressed
}
