package backendtest

import (
	"bytes"
	"strings"
	"sync"
	"testing"

	"cowblk/internal/test"
)

// Log is a log that can be read while it is written.
type Log struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *Log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *Log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// Await waits until the log contains text.
func (l *Log) Await(t testing.TB, text string) {
	t.Helper()
	test.Eventually(t, text, func() bool { return strings.Contains(l.String(), text) }, l)
}
