package backend

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// A guest or front-end can make the same line be logged as often as it likes. A
// disk's log has room for calmBurst lines of one text, and for one more every
// calmEvery; what was left out is counted in the next one's "suppressed".
const (
	logBurst    = 10
	logInterval = 10 * time.Second
)

// logLimiter is a slog.Handler that holds a disk's repeated lines back. Debug lines
// pass: whoever asks for them wants all.
type logLimiter struct {
	next     slog.Handler
	messages *messageBudgets // shared by all that descend from one
}

// messageBudgets are the lines seen, by text. Texts are constants of the source, so there
// are few.
type messageBudgets struct {
	now func() time.Time

	mu        sync.Mutex
	byMessage map[string]*messageBudget
}

// messageBudget is how much may still be said with one text.
type messageBudget struct {
	tokens     float64
	updated    time.Time // when lines was right
	suppressed int64
}

// LimitLog returns a logger for what guests and front-ends cause.
func LimitLog(log *slog.Logger) *slog.Logger {
	return slog.New(&logLimiter{next: log.Handler(), messages: &messageBudgets{now: time.Now, byMessage: map[string]*messageBudget{}}})
}

// Enabled implements slog.Handler; so do the other methods.
func (c *logLimiter) Enabled(ctx context.Context, l slog.Level) bool { return c.next.Enabled(ctx, l) }

func (c *logLimiter) WithAttrs(a []slog.Attr) slog.Handler {
	return &logLimiter{next: c.next.WithAttrs(a), messages: c.messages}
}

func (c *logLimiter) WithGroup(name string) slog.Handler {
	return &logLimiter{next: c.next.WithGroup(name), messages: c.messages}
}

func (c *logLimiter) Handle(ctx context.Context, r slog.Record) error {
	if r.Level < slog.LevelInfo {
		return c.next.Handle(ctx, r)
	}
	ok, suppressed := c.messages.allow(r.Message)
	if !ok {
		return nil
	}
	if suppressed > 0 {
		r = r.Clone()
		r.AddAttrs(slog.Int64("suppressed", suppressed))
	}
	return c.next.Handle(ctx, r)
}

// allow takes a line of text from its budget, and says how many were refused one
// since the last that was not.
func (t *messageBudgets) allow(text string) (ok bool, suppressed int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.now()
	b := t.byMessage[text]
	if b == nil {
		b = &messageBudget{tokens: logBurst, updated: now}
		t.byMessage[text] = b
	}
	b.tokens = min(logBurst, b.tokens+float64(now.Sub(b.updated))/float64(logInterval))
	b.updated = now
	if b.tokens < 1 {
		b.suppressed++
		return false, 0
	}
	b.tokens--
	suppressed, b.suppressed = b.suppressed, 0
	return true, suppressed
}
