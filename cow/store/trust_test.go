package store

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"cowblk/cow"
)

// Root makes, serves and removes nothing in a store through which another user could lead it elsewhere.
func TestStoresOfOthers(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: it changes the owners of files")
	}
	const nobody = 65534
	ctx := context.Background()
	for _, c := range []struct {
		name, found string
		plant       func(t *testing.T, dir, victim string)
	}{
		{"owned by another", "found one of user nobody", func(t *testing.T, dir, _ string) { must(t, os.Chown(dir, nobody, nobody)) }},
		{"others may write", "use a directory of its own", func(t *testing.T, dir, _ string) { must(t, os.Chmod(dir, 0o777)) }},
		{"others may write, sticky", "use a directory of its own", func(t *testing.T, dir, _ string) { must(t, os.Chmod(dir, 0o777|os.ModeSticky)) }},
		{"tmp is a link", "of user nobody", func(t *testing.T, dir, victim string) {
			must(t, os.RemoveAll(filepath.Join(dir, tmpDir)))
			must(t, os.Symlink(victim, filepath.Join(dir, tmpDir)))
			must(t, os.Lchown(filepath.Join(dir, tmpDir), nobody, nobody))
		}},
		{"layers of another", "of user nobody", func(t *testing.T, dir, _ string) { must(t, os.Chown(filepath.Join(dir, layersDir), nobody, nobody)) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newStore(t)
			create(t, s, "vm1", CreateOptions{Size: 1 << 20})
			if _, err := s.Promote(ctx, []string{"vm1"}, "t"); err != nil {
				t.Fatal(err)
			}
			victim := t.TempDir()
			must(t, os.MkdirAll(filepath.Join(victim, "db"), 0o700))
			c.plant(t, s.Dir(), victim)
			again, err := Open(s.Dir(), Options{})
			must(t, err)
			_, created := again.Create(ctx, "vm2", CreateOptions{Size: 1 << 20})
			_, opened := again.OpenDisk(ctx, "vm1", OpenOptions{})
			_, read := again.OpenTag(ctx, Ref{Name: "vm1", Tag: "t"}, cow.Options{})
			_, removed := again.Remove(ctx, "vm1")
			for what, err := range map[string]error{"create": created, "open": opened, "tag": read, "rm": removed} {
				if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), c.found) {
					t.Errorf("%s: %v", what, err)
				}
			}
			if _, err := os.Stat(filepath.Join(victim, "db")); err != nil {
				t.Error(err)
			}
			if disks, err := again.Disks(); err != nil || len(disks) != 1 {
				t.Errorf("listed: %v, %v", disks, err)
			}
		})
	}
}

// A directory that holds something else becomes no store, and what is in a tmp/ of its own stays.
func TestDirectoryThatIsNoStore(t *testing.T) {
	ctx := context.Background()
	for _, name := range []string{"tmp/thesis/ch1", "images/photo", "etc/passwd", "layers/x"} {
		dir := t.TempDir()
		file := filepath.Join(dir, name)
		must(t, os.MkdirAll(filepath.Dir(file), 0o755))
		must(t, os.WriteFile(file, []byte("precious"), 0o644))
		must(t, os.Chmod(dir, 0o750))
		s, err := Open(dir, Options{})
		must(t, err)
		if _, err := s.Create(ctx, "vm1", CreateOptions{Size: 1 << 20}); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "empty directory") {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := os.Stat(file); err != nil {
			t.Error(err)
		}
		if fi, err := os.Stat(dir); err != nil || fi.Mode().Perm() != 0o750 {
			t.Errorf("%s: mode of the directory: %v, %v", name, fi.Mode(), err)
		}
	}
	// A mount point, one that was made beforehand.
	for _, name := range []string{"lost+found", "run"} {
		dir := t.TempDir()
		must(t, os.MkdirAll(filepath.Join(dir, name), 0o755))
		s, err := Open(dir, Options{})
		must(t, err)
		create(t, s, "vm1", CreateOptions{Size: 1 << 20})
		// Something else in tmp/ is nobody's work.
		must(t, os.MkdirAll(s.path(tmpDir, "thesis", "ch1"), 0o755))
		must(t, os.WriteFile(s.path(tmpDir, "notes"), nil, 0o644))
		create(t, s, "vm2", CreateOptions{Size: 1 << 20})
		if _, err := s.Remove(ctx, "vm1"); err != nil {
			t.Error(err)
		}
		if _, err := s.Check(ctx, CheckOptions{Repair: true}); err != nil {
			t.Error(err)
		}
		for _, kept := range []string{"thesis/ch1", "notes"} {
			if _, err := os.Stat(s.path(tmpDir, kept)); err != nil {
				t.Error(err)
			}
		}
	}
}

// A store whose path is not UTF-8 would make disks that cannot be served.
func TestStoreWithoutUTF8(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "st\xff")
	s, err := Open(dir, Options{})
	must(t, err)
	if _, err := s.Create(context.Background(), "vm1", CreateOptions{Size: 1 << 20}); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "UTF-8") {
		t.Errorf("create: %v", err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the directory: %v", err)
	}
}
