package harness

import (
	"context"
	"fmt"
	"regexp"
	"sync"
)

// Transcript keeps output, for a reader that waits for a pattern in it. The zero value is empty and
// ready. It is safe for concurrent use.
type Transcript struct {
	log tail

	mu      sync.Mutex
	unread  []byte        // not yet consumed by Expect
	changed chan struct{} // closed when unread grows; nil: nobody waits
}

// unreadBytes bounds the output that a Transcript keeps for Expect.
const unreadBytes = 1 << 20

// Write adds to the transcript.
func (t *Transcript) Write(b []byte) (int, error) {
	_, _ = t.log.Write(b) // memory: cannot fail
	t.mu.Lock()
	defer t.mu.Unlock()
	t.unread = append(t.unread, b...)
	if extra := len(t.unread) - unreadBytes; extra > 0 {
		t.unread = t.unread[extra:]
	}
	if t.changed != nil {
		close(t.changed)
		t.changed = nil
	}
	return len(b), nil
}

// Expect waits for a match of pattern. It returns the match and its groups, and consumes the output
// up to the end of the match.
func (t *Transcript) Expect(ctx context.Context, pattern string) ([]string, error) {
	re, err := regexp.Compile(pattern)
	if err != nil {
		return nil, err
	}
	for {
		t.mu.Lock()
		if at := re.FindIndex(t.unread); at != nil {
			match := re.FindStringSubmatch(string(t.unread[at[0]:at[1]]))
			t.unread = t.unread[at[1]:]
			t.mu.Unlock()
			return match, nil
		}
		if t.changed == nil {
			t.changed = make(chan struct{})
		}
		changed := t.changed
		t.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, fmt.Errorf("waiting for %q: %w\n--- printed last\n%s", pattern,
				context.Cause(ctx), t.Tail())
		}
	}
}

// Tail returns the end of the output.
func (t *Transcript) Tail() string { return t.log.String() }
