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
	calmBurst = 10
	calmEvery = 10 * time.Second
)

// calm is a slog.Handler that holds a disk's repeated lines back. Debug lines
// pass: whoever asks for them wants all.
type calm struct {
	next  slog.Handler
	texts *texts // shared by all that descend from one
}

// texts are the lines seen, by text. Texts are constants of the source, so there
// are few.
type texts struct {
	now func() time.Time

	mu     sync.Mutex
	budget map[string]*budget
}

// budget is how much may still be said with one text.
type budget struct {
	lines      float64
	since      time.Time // when lines was right
	suppressed int64
}

// calmed returns a logger for what guests and front-ends cause.
func calmed(log *slog.Logger) *slog.Logger {
	return slog.New(&calm{next: log.Handler(), texts: &texts{now: time.Now, budget: map[string]*budget{}}})
}

// Enabled implements slog.Handler; so do the other methods.
func (c *calm) Enabled(ctx context.Context, l slog.Level) bool { return c.next.Enabled(ctx, l) }

func (c *calm) WithAttrs(a []slog.Attr) slog.Handler {
	return &calm{next: c.next.WithAttrs(a), texts: c.texts}
}

func (c *calm) WithGroup(name string) slog.Handler {
	return &calm{next: c.next.WithGroup(name), texts: c.texts}
}

func (c *calm) Handle(ctx context.Context, r slog.Record) error {
	if r.Level < slog.LevelInfo {
		return c.next.Handle(ctx, r)
	}
	ok, suppressed := c.texts.take(r.Message)
	if !ok {
		return nil
	}
	if suppressed > 0 {
		r = r.Clone()
		r.AddAttrs(slog.Int64("suppressed", suppressed))
	}
	return c.next.Handle(ctx, r)
}

// take takes a line of text from its budget, and says how many were refused one
// since the last that was not.
func (t *texts) take(text string) (ok bool, suppressed int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.now()
	b := t.budget[text]
	if b == nil {
		b = &budget{lines: calmBurst, since: now}
		t.budget[text] = b
	}
	b.lines = min(calmBurst, b.lines+float64(now.Sub(b.since))/float64(calmEvery))
	b.since = now
	if b.lines < 1 {
		b.suppressed++
		return false, 0
	}
	b.lines--
	suppressed, b.suppressed = b.suppressed, 0
	return true, suppressed
}
