package loglimit

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"time"
)

func TestRepeatedLinesAreHeldBack(t *testing.T) {
	var out bytes.Buffer
	root := New(slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelDebug})))
	now := time.Unix(1000, 0)
	root.Handler().(*logLimiter).messages.now = func() time.Time { return now }
	a, b := root.With("disk", "a"), root.WithGroup("g")
	count := func() (n int) {
		n = strings.Count(out.String(), "\n")
		out.Reset()
		return n
	}
	for range 1000 {
		a.Warn("broken", "queue", 1)
		b.Info("broken")
	}
	if n := count(); n != Burst {
		t.Errorf("%d lines of 2,000, expected %d", n, Burst)
	}
	a.Info("another text")
	if n := count(); n != 1 {
		t.Errorf("%d lines of another text, expected 1", n)
	}
	for range 100 {
		a.Debug("broken")
	}
	if n := count(); n != 100 {
		t.Errorf("%d of 100 debug lines", n)
	}
	now = now.Add(Interval)
	a.Warn("broken", "queue", 2)
	a.Warn("broken", "queue", 2)
	if s := out.String(); count() != 1 || !strings.Contains(s, "disk=a queue=2 suppressed=1990") {
		t.Errorf("after a while: %q, expected one line that says what is missing", s)
	}
	now = now.Add(time.Hour)
	for range 1000 {
		a.Warn("broken")
	}
	if n := count(); n != Burst {
		t.Errorf("%d lines after an hour, expected %d", n, Burst)
	}
}
