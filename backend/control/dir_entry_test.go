package control

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"cowblk/internal/test"
)

// nobody is a user other than root and the test's user.
const nobody = 65534

// othersDir returns a directory of another user in which this process may create files.
func othersDir(t *testing.T) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root can make a directory of another user's")
	}
	dir := filepath.Join(t.TempDir(), "theirs")
	test.Must(t, os.Mkdir(dir, 0o755))
	test.Must(t, os.Chown(dir, nobody, nobody))
	return dir
}

func TestListenInAnothersDirectory(t *testing.T) {
	test.NoLeaks(t)
	dir := othersDir(t)
	path := filepath.Join(dir, "s")
	for range 2 { // the second time a stale socket exists
		l, err := ListenUnix(path, "7")
		test.Must(t, err)
		var st unix.Stat_t
		test.Must(t, unix.Lstat(path, &st))
		if st.Mode != unix.S_IFSOCK|0o660 || st.Gid != 7 || l.Path() != path ||
			l.Addr().String() != path {
			t.Errorf("mode %o, group %d, path %s, address %s", st.Mode, st.Gid, l.Path(), l.Addr())
		}
		if list, err := os.ReadDir(dir); err != nil || len(list) != 1 {
			t.Errorf("the directory holds %v, %v", list, err)
		}
		test.ErrorIs(t, test.Err(ListenUnix(path, "")), ErrInUse, "a second listener")
		c, err := net.Dial("unix", path)
		test.Must(t, err)
		c.Close()
		test.Must(t, l.Close())
		if list, err := os.ReadDir(dir); err != nil || len(list) != 0 {
			t.Errorf("after Close the directory holds %v, %v", list, err)
		}
		stale(t, path)
	}
}

// A symbolic link of root is followed. One that another user can change is not, at any position in
// the path.
func TestListenThroughLinks(t *testing.T) {
	test.NoLeaks(t)
	dir, own := othersDir(t), t.TempDir()
	test.Must(t, os.Mkdir(filepath.Join(own, "sub"), 0o755))
	sticky := filepath.Join(own, "sticky")
	test.Must(t, os.Mkdir(sticky, 0o755))
	test.Must(t, os.Chmod(sticky, 0o777|os.ModeSticky))
	for _, at := range []string{own, dir, sticky} {
		test.Must(t, os.Symlink(own, filepath.Join(at, "link")))
		test.Must(t, os.Symlink("../sub/..", filepath.Join(at, "relative")))
	}
	test.Must(t, os.Lchown(filepath.Join(sticky, "link"), nobody, nobody))
	for path, allowed := range map[string]bool{
		filepath.Join(own, "link", "s"):                   true,
		filepath.Join(own, "link", "link", "sub", "s"):    true,
		filepath.Join(sticky, "relative", "s"):            true,
		filepath.Join(sticky, "link", "s"):                false,
		filepath.Join(dir, "link", "s"):                   false,
		filepath.Join(dir, "link", "sub", "s"):            false,
		filepath.Join(own, "link", "sticky", "link", "s"): false,
	} {
		l, err := ListenUnix(path, "")
		if err == nil {
			l.Close()
		}
		if allowed != (err == nil) || !allowed && !errors.Is(err, ErrSymlink) {
			t.Errorf("%s: %v", path, err)
		}
	}
	test.Must(t, os.Symlink("loop", filepath.Join(own, "loop")))
	test.ErrorIs(t, test.Err(ListenUnix(filepath.Join(own, "loop", "s"), "")), unix.ELOOP, "a loop")
	if left, _ := filepath.Glob(own + "/*/s"); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// The owner of the directory replaces whatever appears there by a symbolic link. No file elsewhere
// is removed or gets another mode, group or owner.
func TestListenNotRedirected(t *testing.T) {
	dir := othersDir(t)
	victim := filepath.Join(t.TempDir(), "victim")
	test.Must(t, os.WriteFile(victim, []byte("precious"), 0o600))
	path := filepath.Join(dir, "s")
	var stop atomic.Bool
	done := make(chan struct{})
	go func() {
		defer close(done)
		link := filepath.Join(dir, "link")
		for !stop.Load() {
			if _, err := os.Lstat(path); err != nil {
				continue
			}
			os.Symlink(victim, link)
			os.Rename(link, path)
		}
	}()
	for range 500 {
		if l, err := ListenUnix(path, "7"); err == nil {
			l.Close()
		}
		os.Remove(path)
	}
	stop.Store(true)
	<-done
	var st unix.Stat_t
	test.Must(t, unix.Lstat(victim, &st))
	if b, err := os.ReadFile(victim); st.Mode != unix.S_IFREG|0o600 || st.Gid == 7 ||
		string(b) != "precious" {
		t.Errorf("the file elsewhere: mode %o, group %d, %q, %v", st.Mode, st.Gid, b, err)
	}
}

// Every user who can read a directory can lock it.
func TestListenInLockedDirectory(t *testing.T) {
	dir := t.TempDir()
	d, err := os.Open(dir)
	test.Must(t, err)
	defer d.Close()
	test.Must(t, unix.Flock(int(d.Fd()), unix.LOCK_EX))
	stale(t, filepath.Join(dir, "s"))
	l, err := ListenUnix(filepath.Join(dir, "s"), "")
	test.Must(t, err)
	test.Must(t, l.Close())
}

// A socket that another process made accessible to more users gets the access that this process
// sets.
func TestSetGroup(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	first, err := ListenUnix(path, "")
	test.Must(t, err)
	defer first.Close()
	test.Must(t, os.Chmod(path, 0o777))
	fd, err := Duplicate(first)
	test.Must(t, err)
	l, err := AdoptUnix(fd, path)
	test.Must(t, err)
	l.SetKeepFile(true)
	defer l.Close()
	for group, want := range map[string]os.FileMode{"": 0o600, "0": 0o660} {
		test.Must(t, l.SetGroup(group))
		if fi, err := os.Lstat(path); err != nil || fi.Mode().Perm() != want {
			t.Errorf("group %q: %v, %v", group, fi.Mode(), err)
		}
	}
	test.Texts(t, "listen.texts")(t, "another group", l.SetGroup("no-such-group-here"))
	test.Must(t, os.Remove(path))
	test.Must(t, os.WriteFile(path, nil, 0o644))
	test.Must(t, l.SetGroup("0"))
	if fi, err := os.Lstat(path); err != nil || fi.Mode() != 0o644 {
		t.Errorf("another file: %v, %v", fi.Mode(), err)
	}
}
