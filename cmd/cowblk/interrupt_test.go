package main

import (
	"bytes"
	"context"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"cowblk/cow/store"
	"cowblk/internal/test"
)

// A command that waits for another process ends at once at a signal, with the signal's exit code,
// and has changed nothing.
func TestSignalsEndWaits(t *testing.T) {
	dir := shortDir(t)
	golden := filepath.Join(t.TempDir(), "golden.raw")
	test.Must(t, os.WriteFile(golden, randomBytes(1, 1<<20), 0o644))
	command(t, dir, "create", "vm1", "--size", "1M")
	command(t, dir, "promote", "vm1", "--tag", "t")
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	test.Must(t, err)
	defer lock.Close()
	test.Must(t, unix.Flock(int(lock.Fd()), unix.LOCK_EX))
	before := listing(t, dir)
	for _, args := range [][]string{
		{"create", "new", "--size", "1M"}, {"import", golden, "img"}, {"rm", "--yes", "vm1"},
		{"rollback", "--yes", "vm1@t"}, {"promote", "vm1", "--tag", "u"}, {"check", "--repair"},
	} {
		for signal, code := range map[syscall.Signal]int{unix.SIGINT: 130, unix.SIGTERM: 143} {
			p := start(t, dir, nil, args...)
			// It has opened the lock file, so it waits.
			test.Eventually(t, strings.Join(args, " ")+" waits for the store",
				func() bool { return opens(p.cmd.Process.Pid, lock.Name()) })
			test.Must(t, p.cmd.Process.Signal(signal))
			if got := p.outcome(t); got != code || !strings.Contains(p.log.String(),
				"interrupted") {
				t.Errorf("%v, %s: exit %d, want %d: %s", args, signal, got, code, p.log.String())
			}
			after := slices.DeleteFunc(listing(t, dir), func(line string) bool {
				return strings.Contains(line, "lock")
			})
			if want := slices.DeleteFunc(slices.Clone(before), func(line string) bool {
				return strings.Contains(line, "lock")
			}); !slices.Equal(after, want) {
				t.Errorf("%v, %s has changed %v", args, signal, difference(after, want))
			}
		}
	}
}

// opens reports whether a process has a file open.
func opens(pid int, path string) bool {
	links, _ := filepath.Glob("/proc/" + strconv.Itoa(pid) + "/fd/*")
	for _, l := range links {
		if to, err := os.Readlink(l); err == nil && to == path {
			return true
		}
	}
	return false
}

// A promotion that waits for a guest agent ends at once for the client; the guest is not touched
// any further.
func TestPromotionInterrupted(t *testing.T) {
	dir := storeWith(t, "1M", "a")
	l, err := net.Listen("unix", filepath.Join(dir, "mute"))
	test.Must(t, err)
	defer l.Close()
	asked := make(chan net.Conn, 10)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			asked <- c // never answered
		}
	}()
	serving, _ := startServing(t, dir, "a")
	p := start(t, dir, nil, "promote", "a", "--tag", "t", "--quiesce", "guest", "--agent",
		"unix:"+filepath.Join(dir, "mute"), "--timeout", "10m")
	c := <-asked
	defer c.Close()
	test.Must(t, p.cmd.Process.Signal(unix.SIGINT))
	if code := p.outcome(t); code != exitInterrupted || !strings.Contains(p.log.String(),
		"cowblk --store "+dir+" info a") {
		t.Errorf("exit %d: %s", code, p.log.String())
	}
	// The daemon cancels it, too.
	command(t, dir, "promote", "a", "--tag", "after")
	serving.end(t)
	if m := manifestOf(t, dir, "a"); len(m.Layers) != 2 || m.Layers[0].Tag != "after" {
		t.Errorf("%+v", m.Layers)
	}
}

// An interrupted check shows its results and says that it is incomplete.
func TestCheckInterrupted(t *testing.T) {
	s := newScript(t)
	for _, name := range []string{"a", "b", "c"} {
		s.command("cowblk create " + name + " --size 1M")
	}
	ctx, cancel := context.WithCancel(t.Context())
	st := s.store()
	r, err := st.Check(ctx, store.CheckOptions{Names: []string{"a", "b", "c"}})
	if err != nil || len(r.Reports) != 3 {
		t.Fatalf("%+v, %v", r, err)
	}
	cancel()
	if r, err = st.Check(ctx, store.CheckOptions{Names: []string{"a"}}); err == nil || r == nil {
		t.Errorf("%+v, %v", r, err)
	}
	var out, errOut bytes.Buffer
	a := s.app(&out, &errOut)
	root := newRoot(a)
	root.SetArgs([]string{"check"})
	err = root.ExecuteContext(ctx)
	if exitCodeOf(ctx, err) != exitInterrupted || strings.Contains(a.errorText(err),
		"nothing was changed") {
		t.Errorf("%v: %s", err, a.errorText(err))
	}
}

// A disk that is named twice in one command is an error.
func TestNamedTwice(t *testing.T) {
	s := newScript(t)
	for _, name := range []string{"a", "b"} {
		s.command("cowblk create " + name + " --size 1M")
	}
	for _, line := range []string{"promote a a", "rm a a", "rm b a b --yes", "stop a a",
		"check a a", "watch a a", "promote a b a", "resume a a", "qemu-args a a", "serve a a",
		"export a@t a@t --listen tcp:0"} {
		if out := s.command("cowblk " + line); !strings.Contains(out, "exit 2") ||
			!strings.Contains(out, "twice") {
			t.Errorf("%s: %s", line, out)
		}
	}
	if _, err := s.store().Promote(t.Context(), []string{"a", "a"}, "t"); exitCode(
		err) != exitUsage {
		t.Errorf("the store promotes a disk twice: %v", err)
	}
}
