package main

import (
	"path/filepath"
	"strings"
	"testing"
)

// ended waits for a process that ends by itself, with exit code 0.
func (p *process) ended(t testing.TB) {
	t.Helper()
	if err := p.cmd.Wait(); err != nil {
		t.Fatalf("cowblk: %v\n%s", err, p.log.String())
	}
}

func TestTakeoverUnderLoad(t *testing.T) {
	dir := shortDir(t)
	command(t, dir, "create", "a", "--size", "1G")
	p := start(t, dir, nil, "serve", "a")
	l := newLoad(t, filepath.Join(dir, "run", "a.sock"), 16<<10)
	l.more(2000)
	for i := range 3 {
		l.more(2000)
		q := start(t, dir, nil, "serve", "a", "--takeover")
		p.ended(t)
		l.more(2000)
		if n := l.reconnects.Load(); n != int64(i+1) {
			t.Errorf("%d reconnections after %d takeovers", n, i+1)
		}
		p = q
	}
	l.finish()
	t.Logf("%d requests, longest time without a completion %v", l.done.Load(), l.gap)
	if l.refused > 0 {
		t.Errorf("%d connections were refused", l.refused)
	}
	p.end(t)
	if !strings.Contains(command(t, dir, "list"), "stopped") {
		t.Error("the disk is still in use")
	}
}
