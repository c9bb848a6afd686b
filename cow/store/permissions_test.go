package store

import (
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// modes are those of all that is below dir; of sockets and links none.
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
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// fill puts one of everything into a store.
func fillStore(t *testing.T, s *Store) {
	t.Helper()
	importRaw(t, s, "img", noise(1, 64<<10))
	create(t, s, "vm1", CreateOptions{From: "img"})
	ctx := context.Background()
	if _, err := s.Promote(ctx, []string{"vm1"}, "t"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Rollback(ctx, Ref{"vm1", "t"}); err != nil {
		t.Fatal(err)
	}
	if err := s.MakeRunDir(); err != nil {
		t.Fatal(err)
	}
}

// Nobody but the owner can open anything of a store, and so hold its locks, whatever the umask. The store's directory and
// the run directory can be entered, for the guest's QEMU is another user.
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

// A store of an earlier version is closed to others by the next change, and what does not belong to it is left alone.
func TestModesOfAnEarlierVersion(t *testing.T) {
	s := newStore(t)
	fillStore(t, s)
	for path := range modes(t, s.Dir()) {
		path = filepath.Join(s.Dir(), path)
		mode := fs.FileMode(0o644)
		if st, err := os.Stat(path); err == nil && st.IsDir() {
			mode = 0o755
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	// A link in the place of a directory, to one that is somebody else's affair.
	outside := t.TempDir()
	if err := os.Chmod(outside, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(s.path(imagesDir), filepath.Join(outside, imagesDir)); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(outside, imagesDir), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(outside, imagesDir), s.path(imagesDir)); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(s.path(reserveDir)); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, s.Dir())
	o := openDisk(t, s, "vm1") // that is enough of a change
	if err := o.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.MakeRunDir(); err != nil {
		t.Fatal(err)
	}
	if n, err := os.ReadDir(s.path(reserveDir)); err != nil || len(n) != reserveFiles {
		t.Errorf("the store's reserve has %d files, expected %d: %v", len(n), reserveFiles, err)
	}
	now := modes(t, s.Dir())
	for path, want := range map[string]fs.FileMode{
		".": 0o711, "run": 0o711, "lock": 0o600, layersDir: 0o700, disksDir: 0o700, tmpDir: 0o700, "disks/vm1/lock": 0o600,
	} {
		if now[path] != want {
			t.Errorf("%s has mode %#o, expected %#o", path, now[path], want)
		}
	}
	for path, want := range map[string]fs.FileMode{outside: 0o755, filepath.Join(outside, imagesDir): 0o755} {
		if st, err := os.Stat(path); err != nil || st.Mode().Perm() != want {
			t.Errorf("%s has mode %v, expected %#o (%v)", path, st.Mode(), want, err)
		}
	}
}

// A group that may write to the store's directories was given them on purpose, and modes that are narrower stay. Root, who
// would be led by its members, refuses such a store.
func TestModesOfASharedStore(t *testing.T) {
	if asNobody(t) {
		return
	}
	s := newStore(t)
	fillStore(t, s)
	for path, mode := range map[string]fs.FileMode{".": 0o775, disksDir: 0o775, layersDir: 0o500, lockFile: 0o664} {
		if err := os.Chmod(s.path(path), mode); err != nil {
			t.Fatal(err)
		}
	}
	defer os.Chmod(s.path(layersDir), 0o700)
	s = openStore(t, s.Dir())
	if err := s.locked(context.Background(), func() error { return nil }); err != nil {
		t.Fatal(err)
	}
	now := modes(t, s.Dir())
	for path, want := range map[string]fs.FileMode{".": 0o771, disksDir: 0o770, layersDir: 0o500, lockFile: 0o660} {
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
		if err := os.Symlink(target, s.path(lock)); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Promote(context.Background(), []string{"vm1"}, "t"); err == nil {
			t.Errorf("%s: a link was taken for a lock", lock)
		}
		if data, err := os.ReadFile(target); err != nil || string(data) != "something" {
			t.Errorf("%s: the file that the link leads to has changed: %q, %v", lock, data, err)
		}
		if st, err := os.Stat(target); err != nil || st.Mode().Perm() != 0o644 {
			t.Errorf("%s: the file that the link leads to has another mode: %v, %v", lock, st.Mode(), err)
		}
	}
}
