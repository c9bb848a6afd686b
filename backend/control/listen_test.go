package control

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"cowblk/internal/test"
)

func TestSocketMode(t *testing.T) {
	gid := strconv.Itoa(os.Getgid())
	for _, tc := range []struct {
		umask int
		group string
		want  os.FileMode
	}{
		{0o000, "", 0o600}, {0o022, "", 0o600}, {0o777, "", 0o600}, {0o000, gid, 0o660},
		{0o077, gid, 0o660},
	} {
		path := filepath.Join(t.TempDir(), "s")
		old := unix.Umask(tc.umask)
		l, err := ListenUnix(path, tc.group)
		unix.Umask(old)
		test.Must(t, err)
		fi, err := os.Lstat(path)
		test.Must(t, err)
		if fi.Mode() != os.ModeSocket|tc.want {
			t.Errorf("umask %o, group %q: mode %v, want %v", tc.umask, tc.group, fi.Mode(), tc.want)
		}
		test.Check(t, l.Close())
		if _, err := os.Lstat(path); !os.IsNotExist(err) {
			t.Errorf("after Close: %v", err)
		}
	}
}

func TestListenRefuses(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	test.Must(t, os.WriteFile(file, []byte("precious"), 0o600))
	busy := filepath.Join(dir, "busy")
	b, err := net.Listen("unix", busy)
	test.Must(t, err)
	defer b.Close()
	link := filepath.Join(dir, "link")
	test.Must(t, os.Symlink(busy, link))
	text := test.Texts(t, "listen.texts")
	for name, tc := range map[string]struct{ path, group string }{
		"file":         {file, ""},
		"link":         {link, ""},
		"directory":    {dir, ""},
		"busy":         {busy, ""},
		"no directory": {filepath.Join(dir, "none", "s"), ""},
		"too long":     {filepath.Join(dir, strings.Repeat("x", 108)), ""},
		"no group":     {filepath.Join(dir, "s"), "no-such-group-here"},
	} {
		l, err := ListenUnix(tc.path, tc.group)
		if err == nil {
			l.Close()
			t.Errorf("%s: no error", tc.path)
			continue
		}
		if name != "too long" { // by how much depends on the temporary directory
			text(t, name, err)
		}
		if (name == "busy") != errors.Is(err, ErrInUse) {
			t.Errorf("%s: %v is ErrInUse: %v", tc.path, err, errors.Is(err, ErrInUse))
		}
	}
	if b, err := os.ReadFile(file); err != nil || string(b) != "precious" {
		t.Errorf("file: %q, %v", b, err)
	}
	if c, err := net.Dial("unix", busy); err != nil {
		t.Errorf("the other's socket: %v", err)
	} else {
		c.Close()
	}
}

// stale leaves a socket file on which no process listens.
func stale(t *testing.T, path string) {
	t.Helper()
	l, err := net.Listen("unix", path)
	test.Must(t, err)
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
}

// Many listeners start at once on a stale file. One gets the socket and keeps it; the others get
// ErrInUse.
func TestStaleRace(t *testing.T) {
	test.NoLeaks(t)
	for range 20 {
		path := filepath.Join(t.TempDir(), "s")
		stale(t, path)
		var wg sync.WaitGroup
		var mu sync.Mutex
		var won []*Listener
		for range 8 {
			wg.Go(func() {
				l, err := ListenUnix(path, "")
				mu.Lock()
				defer mu.Unlock()
				if err == nil {
					won = append(won, l)
				} else if !errors.Is(err, ErrInUse) {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if len(won) != 1 {
			t.Fatalf("%d listen, want 1", len(won))
		}
		c, err := net.Dial("unix", path)
		test.Must(t, err, "the winner's socket")
		c.Close()
		won[0].Close()
	}
}

// Close does not remove a file that has replaced the socket.
func TestCloseLeavesAnothersFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := ListenUnix(path, "")
	test.Must(t, err)
	// Keeps the inode in use, so that the new file does not get its number.
	test.Must(t, os.Rename(path, path+".moved"))
	stale(t, path)
	test.Check(t, l.Close())
	test.Check(t, test.Err(os.Lstat(path)), "the other's file")
}
