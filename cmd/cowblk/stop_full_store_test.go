package main

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"cowblk/internal/test"
)

// A process ends although its file system is full. The reserve is for the maps of its disks;
// without a reserve the process says which data is kept and what a power cut would lose, and so
// does cowblk stop.
func TestStopOnAFullFileSystem(t *testing.T) {
	if !canMount(t) {
		return
	}
	for _, k := range fullKinds {
		if k.inodes || k.size > 0 && os.Getuid() != 0 {
			continue
		}
		for _, how := range []string{"SIGTERM", "stop"} {
			for _, reserve := range []bool{true, false} {
				name := k.name + "/" + how + map[bool]string{true: "/with reserve",
					false: "/without reserve"}[reserve]
				t.Run(name, func(t *testing.T) { k.stop(t, how, reserve) })
			}
		}
	}
}

// sparse is one block in each page of the map, so that the map must grow.
const sparse = 128 << 20

func (k *fullKind) stop(t *testing.T, how string, reserve bool) {
	m := k.mount(t)
	st := filepath.Join(m, "s")
	command(t, st, "create", "a", "--size", "1G")
	p := start(t, st, nil, "serve", "a", "--flush-interval", "24h")
	guest := dial(t, servedAt(t, st, "a"))
	for n := range int64(8) {
		writeAt(t, guest, n*sparse, pattern(byte(n+1), 4096))
	}
	if !reserve {
		test.Must(t, os.RemoveAll(filepath.Join(st, "reserve")))
	}
	k.exhaust(t, m)
	guest.Close()
	code, text := 0, ""
	if how == "stop" {
		code, text = outcomeOf(t, st, "stop", "a", "--timeout", "40s")
	} else if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	served := p.outcome(t)
	whole := served == exitOK
	if how == "stop" && (code == exitOK) != whole {
		t.Errorf("stop: exit %d, serve: exit %d\n%s\n%s", code, served, text, p.log.String())
	}
	if reserve && !whole {
		t.Errorf("the reserve was not used: exit %d\n%s", served, p.log.String())
	}
	if !whole {
		for _, text := range append([]string{p.log.String()},
			map[bool][]string{true: {text}}[how == "stop"]...) {
			for _, word := range []string{"no space left", "power cut", "next process"} {
				if !strings.Contains(text, word) {
					t.Errorf("expected %q in\n%s", word, text)
				}
			}
		}
	}
	t.Logf("serve: exit %d", served)
	test.Must(t, os.RemoveAll(filepath.Join(m, "ballast")))
	p = start(t, st, nil, "serve", "a")
	guest = dial(t, servedAt(t, st, "a"))
	for n := range int64(8) {
		wantAt(t, guest, n*sparse, pattern(byte(n+1), 4096))
	}
	guest.Close()
	p.end(t)
}

// Disks that are served on have their maps written, too, and leave half of the reserve for closing.
func TestBackgroundFlushOnAFullFileSystem(t *testing.T) {
	if !canMount(t) {
		return
	}
	k := fullKinds[0]
	m := k.mount(t)
	st := filepath.Join(m, "s")
	command(t, st, "create", "a", "--size", "1G")
	p := start(t, st, nil, "serve", "a", "--flush-interval", "1s")
	guest := dial(t, servedAt(t, st, "a"))
	for n := range int64(8) {
		writeAt(t, guest, n*sparse, pattern(byte(n+1), 4096))
	}
	k.exhaust(t, m)
	count := func() int {
		files, err := os.ReadDir(filepath.Join(st, "reserve"))
		test.Must(t, err)
		return len(files)
	}
	before := count()
	test.Eventually(t, "the reserve is used", func() bool { return count() < before })
	if n := count(); n < before/2 {
		t.Errorf("of %d files of the reserve %d are left", before, n)
	}
	guest.Close()
	p.end(t)
	if text := p.log.String(); strings.Contains(text, "a background flush failed") {
		t.Error(text)
	}
}

// servedAt waits for a starting process and returns the socket of a disk.
func servedAt(t *testing.T, dir, disk string) string {
	t.Helper()
	socket := ""
	test.Eventually(t, "the disk is served", func() bool {
		i := infoOf(t, dir, disk)
		socket = i.Socket
		return i.Serving != nil && i.Serving.Control != ""
	})
	return socket
}

// An unknown state is not reported as "not open": a disk whose lock cannot be read may be served.
func TestStopOfUnreadableLock(t *testing.T) {
	for what, replace := range map[string]func(lock string) error{
		"directory": func(lock string) error { return os.Mkdir(lock, 0o700) },
		// ELOOP, for root too
		"link": func(lock string) error { return os.Symlink("lock", lock) },
	} {
		dir := storeWith(t, "1M", "vm1")
		lock := filepath.Join(dir, "disks", "vm1", "lock")
		test.Must(t, os.Remove(lock))
		test.Must(t, replace(lock))
		code, text := outcomeOf(t, dir, "stop", "vm1")
		if code != exitFailure && code != exitRefused || strings.Contains(text, "not open") ||
			!strings.Contains(text, lock) {
			t.Errorf("%s: exit %d: %s", what, code, text)
		}
	}
}
