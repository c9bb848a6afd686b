package store

import (
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"cowblk/internal/test"
)

// modes returns the modes of everything below dir except sockets and links.
func modes(t *testing.T, dir string) map[string]fs.FileMode {
	t.Helper()
	all := map[string]fs.FileMode{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		st, err := d.Info()
		if err != nil {
			return err
		}
		if name, _ := filepath.Rel(dir, path); st.Mode().IsRegular() || st.IsDir() {
			all[name] = st.Mode().Perm()
		}
		return nil
	})
	test.Must(t, err)
	return all
}

// fill puts one object of each kind into a store.
func fillStore(t *testing.T, s *Store) {
	t.Helper()
	importRaw(t, s, "img", noise(1, 64<<10))
	create(t, s, "vm1", CreateOptions{From: "img"})
	test.Must(t, test.Err(s.Promote(ctx, []string{"vm1"}, "t")))
	test.Must(t, test.Err(s.Rollback(ctx, Ref{"vm1", "t"})))
	test.Must(t, s.MakeRunDir())
}

// Only the owner can open a file of a store, and so hold its locks, whatever the umask. Others can
// enter the store's directory and the run directory, because the guest's QEMU is another user.
func TestModes(t *testing.T) {
	s := newStore(t)
	defer unix.Umask(unix.Umask(0))
	fillStore(t, s)
	for path, mode := range modes(t, s.Dir()) {
		most := fs.FileMode(0o700)
		if path == "." || path == "run" {
			most = 0o711
		}
		if mode&^most != 0 {
			t.Errorf("%s has mode %#o, expected no more than %#o", path, mode, most)
		}
	}
}

// The next change closes a store of an earlier version to others, and leaves foreign files alone.
func TestModesOfAnEarlierVersion(t *testing.T) {
	s := newStore(t)
	fillStore(t, s)
	for path := range modes(t, s.Dir()) {
		path = filepath.Join(s.Dir(), path)
		mode := fs.FileMode(0o644)
		if st, err := os.Stat(path); err == nil && st.IsDir() {
			mode = 0o755
		}
		test.Must(t, os.Chmod(path, mode))
	}
	// A symbolic link in place of a directory, to a foreign directory.
	outside := t.TempDir()
	test.Must(t, os.Chmod(outside, 0o755))
	test.Must(t, os.Rename(s.path(imagesDir), filepath.Join(outside, imagesDir)))
	test.Must(t, os.Chmod(filepath.Join(outside, imagesDir), 0o755))
	test.Must(t, os.Symlink(filepath.Join(outside, imagesDir), s.path(imagesDir)))
	test.Must(t, os.RemoveAll(s.path(reserveDir)))
	s = openStore(t, s.Dir())
	o := openDisk(t, s, "vm1") // this is a change already
	test.Must(t, o.Close())
	test.Must(t, s.MakeRunDir())
	if n, err := os.ReadDir(s.path(reserveDir)); err != nil || len(n) != reserveFiles {
		t.Errorf("the store's reserve has %d files, expected %d: %v", len(n), reserveFiles, err)
	}
	now := modes(t, s.Dir())
	for path, want := range map[string]fs.FileMode{
		".": 0o711, "run": 0o711, "lock": 0o600, layersDir: 0o700, disksDir: 0o700, tmpDir: 0o700,
		"disks/vm1/lock": 0o600,
	} {
		if now[path] != want {
			t.Errorf("%s has mode %#o, expected %#o", path, now[path], want)
		}
	}
	for path, want := range map[string]fs.FileMode{outside: 0o755, filepath.Join(outside,
		imagesDir): 0o755} {
		if st, err := os.Stat(path); err != nil || st.Mode().Perm() != want {
			t.Errorf("%s has mode %v, expected %#o (%v)", path, st.Mode(), want, err)
		}
	}
}

// A group that may write to the store's directories was given this right on purpose: it stays, and
// so do narrower modes. Root refuses such a store, because the group's members could lead it
// elsewhere.
func TestModesOfASharedStore(t *testing.T) {
	if asNobody(t) {
		return
	}
	s := newStore(t)
	fillStore(t, s)
	for path, mode := range map[string]fs.FileMode{".": 0o775, disksDir: 0o775, layersDir: 0o500,
		lockFile: 0o664} {
		test.Must(t, os.Chmod(s.path(path), mode))
	}
	defer os.Chmod(s.path(layersDir), 0o700)
	s = openStore(t, s.Dir())
	test.Must(t, s.locked(ctx, func() error { return nil }))
	now := modes(t, s.Dir())
	for path, want := range map[string]fs.FileMode{".": 0o771, disksDir: 0o770, layersDir: 0o500,
		lockFile: 0o660} {
		if now[path] != want {
			t.Errorf("%s has mode %#o, expected %#o", path, now[path], want)
		}
	}
}

// A lock that is a symbolic link is not followed.
func TestLockIsALink(t *testing.T) {
	for _, lock := range []string{lockFile, "disks/vm1/lock"} {
		s := newStore(t)
		create(t, s, "vm1", CreateOptions{Size: 1 << 20})
		target := tempFile(t, "other", []byte("something"))
		if err := os.Remove(s.path(lock)); err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		test.Must(t, os.Symlink(target, s.path(lock)))
		if _, err := s.Promote(ctx, []string{"vm1"}, "t"); err == nil {
			t.Errorf("%s: a link was taken for a lock", lock)
		}
		if data, err := os.ReadFile(target); err != nil || string(data) != "something" {
			t.Errorf("%s: the file that the link leads to has changed: %q, %v", lock, data, err)
		}
		if st, err := os.Stat(target); err != nil || st.Mode().Perm() != 0o644 {
			t.Errorf("%s: the file that the link leads to has another mode: %v, %v", lock,
				st.Mode(), err)
		}
	}
}
