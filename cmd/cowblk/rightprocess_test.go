package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// A lock file that names the control socket of a process with disks of the same names, from another store, leads to no
// change of those.
func TestLockFileNamesAnotherStoresProcess(t *testing.T) {
	dir := shortDir(t)
	served, meant := filepath.Join(dir, "served"), filepath.Join(dir, "meant")
	for _, st := range []string{served, meant} {
		command(t, st, "create", "d", "--size", "1M")
	}
	p, f := startServing(t, served, "d")
	defer f.Close()
	lock, err := os.OpenFile(filepath.Join(meant, "disks", "d", "lock"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(map[string]any{
		"pid": os.Getpid(), "control": filepath.Join(served, "run", "d.ctl"), "socket": filepath.Join(served, "run", "d.sock"),
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := lock.Truncate(0); err != nil {
		t.Fatal(err)
	}
	if _, err := lock.WriteAt(text, 0); err != nil {
		t.Fatal(err)
	}
	s := &stranger{store: meant}
	for _, line := range []string{
		"stop d --timeout 10s", "promote d --tag u", "attach d --qmp unix:/nonexistent/qmp", "detach d --qmp unix:/nonexistent/qmp", "resume d", "serve d --takeover",
	} {
		if code, out := s.run(strings.Fields(line)...); code != exitRefused || !strings.Contains(out, "from store "+served) {
			t.Errorf("%s: exit %d: %s", line, code, out)
		}
	}
	// By another path it is the same store.
	other := filepath.Join(dir, "link")
	if err := os.Symlink(served, other); err != nil {
		t.Fatal(err)
	}
	command(t, other, "promote", "d", "--tag", "t")
	if m := manifestOf(t, served, "d"); len(m.Layers) != 2 || m.Layers[0].Tag != "t" {
		t.Errorf("%+v", m.Layers)
	}
	command(t, other, "stop", "d")
	if code := p.outcome(t); code != exitOK {
		t.Errorf("exit %d", code)
	}
}
