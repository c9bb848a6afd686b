package main

import (
	"path/filepath"
	"strings"
	"testing"
)

// A file system with free space but without free inodes is reported, by a serving process and by
// watch itself.
func TestWatchOfInodes(t *testing.T) {
	if !canMount(t) {
		return
	}
	for _, k := range fullKinds {
		if !k.inodes || k.size > 0 {
			continue // mounted by root only; the kernel counts the same way
		}
		m := k.mount(t)
		st := filepath.Join(m, "s")
		command(t, st, "create", "a", "--size", "1M")
		for _, threshold := range []string{"5%", "1M"} {
			if code, text := outcomeOf(t, st, "watch", "--threshold", threshold, "--timeout",
				"100ms"); code != exitTimeout {
				t.Errorf("with room, %s: exit %d: %s", threshold, code, text)
			}
		}
		k.exhaust(t, m)
		for _, threshold := range []string{"5%", "1M"} {
			if out := command(t, st, "watch", "--threshold", threshold, "--timeout",
				"20s"); !strings.Contains(out, "inodes") {
				t.Errorf("%s: %s", threshold, out)
			}
		}
		p := start(t, st, nil, "serve", "a")
		servedAt(t, st, "a")
		if out := command(t, st, "watch", "--timeout", "20s"); !strings.Contains(out, "inodes") {
			t.Errorf("of the process: %s", out)
		}
		p.end(t)
	}
}
