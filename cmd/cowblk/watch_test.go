package main

import (
	"bytes"
	"encoding/json"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// beginWatch runs "cowblk watch" in the background.
func beginWatch(t *testing.T, dir string, args ...string) (ended chan int, out *lockedBuffer) {
	t.Helper()
	out = new(lockedBuffer)
	ended = make(chan int, 1)
	a := testApp(out, out)
	args = append([]string{"--store", dir, "watch", "--timeout", "30s"}, args...)
	go func() { ended <- run(args, a) }()
	return ended, out
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// Processes start and end; watch receives the events of each that serves a watched disk.
func TestWatchServedDisks(t *testing.T) {
	dir := storeWith(t, "1M", "a", "b", "c")
	all, allOut := beginWatch(t, dir)
	named, namedOut := beginWatch(t, dir, "c", "--json")
	p := start(t, dir, nil, "serve", "a", "b", "--space-low", "off")
	ca, _ := dialControl(t, dir, "a")
	time.Sleep(3 * time.Second / 2) // until watch has found it
	p.end(t)
	p = start(t, dir, nil, "serve", "a", "b", "--space-low", "off")
	dial(t, filepath.Join(dir, "run", "a.sock"))
	select {
	case code := <-all:
		t.Fatalf("ended with %d: %s", code, allOut)
	default:
	}
	changeSettings(t, ca, `{"space-low": "100%"}`)
	if code := <-all; code != exitOK || !strings.HasPrefix(allOut.String(),
		"space is low for a, b: ") {
		t.Errorf("exit %d: %s", code, allOut)
	}
	select {
	case code := <-named:
		t.Fatalf("ended with %d for disks that it does not watch: %s", code, namedOut)
	default:
	}
	q := start(t, dir, nil, "serve", "c", "--space-low", "100%") // low already
	if code := <-named; code != exitOK {
		t.Errorf("exit %d: %s", code, namedOut)
	}
	var e struct {
		Event     string
		Data      struct{ Disks []string }
		Timestamp struct{ Seconds int64 }
	}
	if err := json.Unmarshal([]byte(namedOut.String()), &e); err != nil ||
		e.Event != "COW_SPACE_LOW" || len(e.Data.Disks) != 1 || e.Data.Disks[0] != "c" ||
		e.Timestamp.Seconds == 0 {
		t.Errorf("%s, %v", namedOut, err)
	}
	p.end(t)
	q.end(t)
}

// Event data is printed in words, without Go syntax.
func TestEventValues(t *testing.T) {
	for want, v := range map[string]any{
		"a, b": []any{"a", "b"}, "1, 2": []any{1.0, 2.0}, "123456789012": 123456789012.0,
		"0.5": 0.5, "x": "x", "true": true, "null": nil, `{"a":1}`: map[string]any{"a": 1.0},
		"": []any{},
	} {
		if got := valueText(v); got != want {
			t.Errorf("%v: %q, want %q", v, got, want)
		}
	}
}
