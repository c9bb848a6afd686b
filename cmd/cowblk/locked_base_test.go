package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"cowblk/internal/test"
)

// A user who may read a base in place can hold locks on it that prevent disks on it from being
// opened. The error says what is known, names the process and a remedy. Locks that only a writer
// can hold always refuse.
func TestLockedBase(t *testing.T) {
	record := func(command int, kind int16, start, n int64) func(t *testing.T, f *os.File) {
		return func(t *testing.T, f *os.File) {
			lk := unix.Flock_t{Type: kind, Start: start, Len: n}
			test.Must(t, unix.FcntlFlock(f.Fd(), command, &lk))
		}
	}
	for _, c := range []struct {
		name  string
		write bool // opened for writing
		lock  func(t *testing.T, f *os.File)
		also  bool // expected in the error, too
	}{
		{"flock", false, func(t *testing.T, f *os.File) {
			test.Must(t, unix.Flock(int(f.Fd()), unix.LOCK_EX))
		}, false},
		{"POSIX, whole file", false, record(unix.F_SETLK, unix.F_RDLCK, 0, 0), false},
		{"POSIX, bytes 200 to 207", false, record(unix.F_SETLK, unix.F_RDLCK, 200, 8), false},
		{"OFD, whole file", false, record(unix.F_OFD_SETLK, unix.F_RDLCK, 0, 0), false},
		{"OFD, bytes 200 to 207", false, record(unix.F_OFD_SETLK, unix.F_RDLCK, 200, 8), false},
		{"POSIX, for writing", true, record(unix.F_SETLK, unix.F_WRLCK, 100, 200), false},
		{"the range of a writer", true, record(unix.F_OFD_SETLK, unix.F_WRLCK, 1<<62, 1<<20), true},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := shortDir(t)
			base := filepath.Join(dir, "base")
			test.Must(t, os.WriteFile(base, pattern(1, 1<<20), 0o644))
			st := filepath.Join(dir, "s")
			command(t, st, "create", "a", "--base", base)
			command(t, st, "promote", "a", "--tag", "t")
			flag := os.O_RDONLY
			if c.write {
				flag = os.O_RDWR
			}
			f, err := os.OpenFile(base, flag, 0)
			test.Must(t, err)
			defer f.Close()
			c.lock(t, f)
			at := filepath.Join(dir, "nbd")
			refused := func(args ...string) {
				t.Helper()
				code, text := outcomeOf(t, st, args...)
				if code != exitInUse || strings.Contains(text, "for writing") {
					t.Errorf("%v: exit %d: %s", args, code, text)
				}
				if c.also {
					return
				}
				for _, word := range []string{fmt.Sprintf("(process %d) holds a lock", os.Getpid()),
					"--force-share"} {
					if !strings.Contains(text, word) {
						t.Errorf("%v: expected %q in: %s", args, word, text)
					}
				}
			}
			refused("serve", "a")
			refused("export", "a@t", "--listen", "unix:"+at)
			refused("create", "b", "--base", base)
			if c.also {
				refused("serve", "a", "--force-share")
				refused("create", "b", "--base", base, "--force-share")
				return
			}
			command(t, st, "create", "b", "--base", base, "--force-share")
			p := start(t, st, nil, "serve", "a", "--force-share")
			guest := dial(t, servedAt(t, st, "a"))
			wantAt(t, guest, 0, pattern(1, 1<<20))
			guest.Close()
			p.end(t)
			p, _ = startExport(t, st, 1, "a@t", "--listen", "unix:"+at, "--force-share")
			p.end(t)
			// The recorded fingerprint is compared nevertheless.
			test.Must(t, os.WriteFile(base, pattern(2, 1<<20), 0o644))
			if code, text := outcomeOf(t, st, "serve", "a", "--force-share"); code != exitRefused {
				t.Errorf("a base that has changed: exit %d: %s", code, text)
			}
		})
	}
}

// The holder of a lock of the whole file can be found for processes of any user.
func TestLockedBaseNamesTheProcess(t *testing.T) {
	dir := shortDir(t)
	base := filepath.Join(dir, "base")
	test.Must(t, os.WriteFile(base, pattern(1, 1<<20), 0o644))
	st := filepath.Join(dir, "s")
	command(t, st, "create", "a", "--base", base)
	holder := exec.Command("flock", "-x", base, "sh", "-c", "echo held; exec cat")
	in, err := holder.StdinPipe()
	test.Must(t, err)
	out, err := holder.StdoutPipe()
	test.Must(t, err)
	test.Must(t, holder.Start())
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatal(line, err)
	}
	code, text := outcomeOf(t, st, "serve", "a")
	if code != exitInUse || !strings.Contains(text, fmt.Sprintf("flock (process %d)",
		holder.Process.Pid)) {
		t.Errorf("exit %d: %s", code, text)
	}
	in.Close()
	_, _ = io.Copy(io.Discard, out)
	test.Must(t, holder.Wait())
}
