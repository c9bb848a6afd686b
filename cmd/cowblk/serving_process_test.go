package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"cowblk/internal/test"
)

// A lock file may name the control socket of a process that serves a disk of the same name from
// another store. No command changes that disk.
func TestLockFileNamesAnotherStoresProcess(t *testing.T) {
	dir := shortDir(t)
	served, meant := filepath.Join(dir, "served"), filepath.Join(dir, "meant")
	for _, st := range []string{served, meant} {
		command(t, st, "create", "d", "--size", "1M")
	}
	p, f := startServing(t, served, "d")
	defer f.Close()
	lock, err := os.OpenFile(filepath.Join(meant, "disks", "d", "lock"), os.O_RDWR, 0)
	test.Must(t, err)
	defer lock.Close()
	test.Must(t, unix.Flock(int(lock.Fd()), unix.LOCK_EX))
	text, err := json.Marshal(map[string]any{
		"pid": os.Getpid(), "control": filepath.Join(served, "run", "d.ctl"),
		"socket": filepath.Join(served, "run", "d.sock"),
	})
	test.Must(t, err)
	test.Must(t, lock.Truncate(0))
	test.Must(t, test.Err(lock.WriteAt(text, 0)))
	s := &untrustedStore{store: meant}
	for _, line := range []string{
		"stop d --timeout 10s", "promote d --tag u", "attach d --qmp unix:/nonexistent/qmp",
		"detach d --qmp unix:/nonexistent/qmp", "resume d", "serve d --takeover",
	} {
		if code, out := s.run(strings.Fields(line)...); code != exitRefused ||
			!strings.Contains(out, "from store "+served) {
			t.Errorf("%s: exit %d: %s", line, code, out)
		}
	}
	// A store reached by another path is the same store.
	other := filepath.Join(dir, "link")
	test.Must(t, os.Symlink(served, other))
	command(t, other, "promote", "d", "--tag", "t")
	if m := manifestOf(t, served, "d"); len(m.Layers) != 2 || m.Layers[0].Tag != "t" {
		t.Errorf("%+v", m.Layers)
	}
	command(t, other, "stop", "d")
	test.Equal(t, p.outcome(t), exitOK, "exit")
}
