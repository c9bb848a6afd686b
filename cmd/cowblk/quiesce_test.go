package main

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"cowblk/backend/backendtest"
	"cowblk/backend/qmp"
	"cowblk/cow/store"
	"cowblk/internal/test"
)

// listenRefusing makes a socket file on which no process listens.
func listenRefusing(t *testing.T, path string) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	test.Must(t, err)
	l.SetUnlinkOnClose(false)
	l.Close()
}

// A promotion whose guest cannot be reached freezes nothing and leaves no record. Later promotions
// work, and the process ends without an error.
func TestUnreachableGuestLeavesNoRecord(t *testing.T) {
	dir := storeWith(t, "1M", "a")
	s, err := store.Open(dir, store.Options{})
	test.Must(t, err)
	listenRefusing(t, filepath.Join(dir, "refuses"))
	p, _ := startServing(t, dir, "a")
	for _, args := range [][]string{
		{"--quiesce", "guest", "--agent", "unix:" + filepath.Join(dir, "refuses")},
		{"--quiesce", "guest", "--agent", "unix:" + filepath.Join(dir, "none")},
		{"--quiesce", "guest", "--agent", "vsock:4000000000:1"},
		{"--quiesce", "guest", "--libvirt", "qemu:///system?socket=" + filepath.Join(dir,
			"refuses"), "--domain", "x"},
		{"--quiesce", "guest", "--libvirt", "qemu:///system?socket=" + filepath.Join(dir, "none"),
			"--domain", "x"},
		{"--quiesce", "pause", "--qmp", "unix:" + filepath.Join(dir, "refuses")},
		{"--quiesce", "pause", "--libvirt", "qemu:///system?socket=" + filepath.Join(dir, "none"),
			"--domain", "x"},
	} {
		code, text := outcomeOf(t, dir, append([]string{"promote", "a", "--tag", "t", "--timeout",
			"1s"}, args...)...)
		if code != exitFailure || !strings.Contains(text, "the guest was not quiesced") {
			t.Errorf("%v: exit %d: %s", args, code, text)
		}
		if noted, err := s.QuiesceRecord("a", &qmp.Spec{}); noted || err != nil {
			t.Errorf("%v: a record is left: %t, %v", args, noted, err)
		}
	}
	backendtest.NewGuest(t, dir)
	command(t, dir, "promote", "a", "--tag", "t", "--quiesce", "guest", "--agent",
		"unix:"+filepath.Join(dir, "agent"))
	p.end(t)
	if log := p.log.String(); strings.Contains(log, "level=ERROR") ||
		strings.Contains(log, "frozen or paused") {
		t.Errorf("log:\n%s", log)
	}
}

// resume --forget removes a record, of a stopped disk and of a served one, and does not touch the
// guest.
func TestForget(t *testing.T) {
	dir := storeWith(t, "1M", "a")
	s, err := store.Open(dir, store.Options{})
	test.Must(t, err)
	spec := qmp.Spec{Mode: qmp.QuiesceGuest, Agent: "unix:" + filepath.Join(dir, "none")}
	noted := func() bool {
		t.Helper()
		there, err := s.QuiesceRecord("a", &qmp.Spec{})
		test.Must(t, err)
		return there
	}
	if out := command(t, dir, "resume", "--forget", "a"); !strings.Contains(out,
		"a has no record") {
		t.Error(out)
	}
	test.Must(t, s.SetQuiesceRecord("a", spec))
	if out := command(t, dir, "resume", "--forget", "a"); noted() || !strings.Contains(out,
		"a no longer has a record") {
		t.Errorf("stopped: %s", out)
	}
	// Also a record that cannot be read.
	test.Must(t, os.WriteFile(filepath.Join(dir, "disks", "a", "quiesced.json"), []byte("{"),
		0o600))
	if command(t, dir, "resume", "--forget", "a"); noted() {
		t.Error("damaged: it is still there")
	}
	test.Must(t, s.SetQuiesceRecord("a", spec))
	p, _ := startServing(t, dir, "a") // tries to thaw the guest
	if code, text := outcomeOf(t, dir, "promote", "a", "--quiesce", "guest", "--agent", spec.Agent,
		"--timeout", "10ms"); code != exitFailure || !strings.Contains(text, "--forget") {
		t.Errorf("exit %d: %s", code, text)
	}
	if command(t, dir, "resume", "--forget", "a"); noted() {
		t.Error("served: it is still there")
	}
	backendtest.NewGuest(t, dir)
	command(t, dir, "promote", "a", "--tag", "t", "--quiesce", "guest", "--agent",
		"unix:"+filepath.Join(dir, "agent"))
	p.end(t)
	if log := p.log.String(); strings.Contains(log, "level=ERROR") {
		t.Errorf("log:\n%s", log)
	}
	for _, args := range [][]string{{"resume", "--forget", "nosuch"}, {"resume", "--forget", "a",
		"a"}} {
		if code, text := outcomeOf(t, dir, args...); code == exitOK {
			t.Errorf("%v: %s", args, text)
		}
	}
}
