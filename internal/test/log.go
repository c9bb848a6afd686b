package test

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"strings"
	"sync"
)

// Log keeps what a logger logs. Tests look at levels and attributes, not at messages. The zero
// value is empty.
type Log struct {
	mu      sync.Mutex
	records []Record
}

// Record is a line of a Log.
type Record struct {
	Level   slog.Level
	Message string
	Attrs   map[string]string // values as text
}

// Logger returns a logger that writes to the log, at all levels from Info up.
func (l *Log) Logger() *slog.Logger { return slog.New(&recorder{log: l}) }

// Records returns what was logged so far.
func (l *Log) Records() []Record {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.records[:len(l.records):len(l.records)]
}

// Count returns the number of lines of at least a level.
func (l *Log) Count(level slog.Level) (n int) {
	for _, r := range l.Records() {
		if r.Level >= level {
			n++
		}
	}
	return n
}

// Values returns the values of an attribute, in the order of the lines that have it.
func (l *Log) Values(key string) (values []string) {
	for _, r := range l.Records() {
		if v, ok := r.Attrs[key]; ok {
			values = append(values, v)
		}
	}
	return values
}

// String formats the log for a person.
func (l *Log) String() string {
	var b strings.Builder
	for _, r := range l.Records() {
		fmt.Fprintln(&b, r.Level, r.Message, r.Attrs)
	}
	return b.String()
}

// recorder is the handler of a Log. Groups are not supported.
type recorder struct {
	log   *Log
	attrs map[string]string // of the logger
}

func (h *recorder) Enabled(_ context.Context, level slog.Level) bool {
	return level >= slog.LevelInfo
}

func (h *recorder) Handle(_ context.Context, r slog.Record) error {
	attrs := maps.Clone(h.attrs)
	if attrs == nil {
		attrs = map[string]string{}
	}
	r.Attrs(func(a slog.Attr) bool {
		attrs[a.Key] = a.Value.String()
		return true
	})
	h.log.mu.Lock()
	defer h.log.mu.Unlock()
	h.log.records = append(h.log.records, Record{r.Level, r.Message, attrs})
	return nil
}

func (h *recorder) WithAttrs(attrs []slog.Attr) slog.Handler {
	with := &recorder{h.log, maps.Clone(h.attrs)}
	if with.attrs == nil {
		with.attrs = map[string]string{}
	}
	for _, a := range attrs {
		with.attrs[a.Key] = a.Value.String()
	}
	return with
}

func (h *recorder) WithGroup(string) slog.Handler { return h }
