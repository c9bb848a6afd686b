package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"cowblk/cow/vfs"
	"cowblk/internal/test"
)

// rm --damaged removes a disk whose manifest is missing or damaged and frees its name. No layer is
// removed, also if the manifest is a copy of another disk's.
func TestRemoveDamaged(t *testing.T) {
	for what, hurt := range map[string]func(t *testing.T, s *Store, path string){
		"missing": func(t *testing.T, _ *Store, path string) { test.Must(t, os.Remove(path)) },
		"cut off": func(t *testing.T, _ *Store, path string) {
			test.Must(t, os.Truncate(path, 100))
		},
		"empty": func(t *testing.T, _ *Store, path string) { test.Must(t, os.Truncate(path, 0)) },
		"directory": func(t *testing.T, _ *Store, path string) {
			test.Must(t, os.Remove(path))
			test.Must(t, os.Mkdir(path, 0o700))
		},
		"of another disk": func(t *testing.T, s *Store, path string) {
			data := readFile(t, s.path(disksDir, "other", diskFile))
			test.Must(t, os.WriteFile(path, data, 0o600))
		},
		"everything missing": func(t *testing.T, s *Store, _ string) {
			test.Must(t, os.RemoveAll(s.path(disksDir, "vm1")))
			test.Must(t, os.Mkdir(s.path(disksDir, "vm1"), 0o700))
		},
	} {
		t.Run(what, func(t *testing.T) {
			s := newStore(t)
			create(t, s, "vm1", CreateOptions{Size: 1 << 20})
			create(t, s, "other", CreateOptions{Size: 1 << 20})
			test.Must(t, test.Err(s.Promote(ctx, []string{"vm1"}, "t")))
			create(t, s, "clone", CreateOptions{From: "vm1@t"})
			layers := entries(t, s.path(layersDir))
			path := s.path(disksDir, "vm1", diskFile)
			test.ErrorIs(t, test.Err(s.RemoveDamaged(ctx, "vm1")), ErrInvalid,
				"of a disk that is whole")
			hurt(t, s, path)
			if all, err := s.Disks(); err == nil || len(all) != 2 || !strings.Contains(err.Error(),
				"vm1") {
				t.Errorf("disks: %d, %v", len(all), err)
			}
			if _, err := s.Remove(ctx, "vm1"); err == nil {
				t.Fatal("removed without the word")
			}
			lock, err := s.LockDisk("vm1")
			test.Must(t, err)
			test.ErrorIs(t, test.Err(s.RemoveDamaged(ctx, "vm1")), ErrInUse, "of a disk in use")
			test.Must(t, lock.Unlock())
			r, err := s.RemoveDamaged(ctx, "vm1")
			if err != nil || !r.Damaged || len(r.Layers) != 0 {
				t.Fatalf("%+v, %v", r, err)
			}
			if got := entries(t, s.path(layersDir)); !slices.Equal(got, layers) {
				t.Errorf("layers %v, were %v", got, layers)
			}
			if left := entries(t, s.path(tmpDir)); len(left) != 0 {
				t.Errorf("left in tmp: %v", left)
			}
			content(t, s, "clone")
			content(t, s, "other")
			create(t, s, "vm1", CreateOptions{Size: 1 << 20})
			if _, err := s.Remove(ctx, "clone"); err != nil {
				t.Error(err)
			}
			check(t, s, CheckOptions{Repair: true, Prune: true})
			if got := entries(t, s.path(layersDir)); len(got) != 2 {
				t.Errorf("pruned: %v, want those of vm1 and other", got)
			}
			content(t, s, "other")
		})
	}
}

// A removal of a disk with another disk's manifest that was killed is completed without touching
// the other disk.
func TestRemoveDamagedInterrupted(t *testing.T) {
	s := newStore(t)
	create(t, s, "vm1", CreateOptions{Size: 1 << 20})
	create(t, s, "other", CreateOptions{Size: 1 << 20})
	data := readFile(t, s.path(disksDir, "other", diskFile))
	test.Must(t, os.WriteFile(s.path(disksDir, "vm1", diskFile), data, 0o600))
	fsys := &keepLeft{FS: s.fs}
	s.fs = fsys
	test.Must(t, test.Err(s.RemoveDamaged(ctx, "vm1")))
	s.fs = fsys.FS
	if left := entries(t, s.path(tmpDir)); len(left) != 1 {
		t.Fatalf("left in tmp: %v", left)
	}
	create(t, s, "vm2", CreateOptions{Size: 1 << 20})
	if left := entries(t, s.path(tmpDir)); len(left) != 0 {
		t.Errorf("left in tmp: %v", left)
	}
	content(t, s, "other")
}

// A directory in the place of a manifest, or of its temporary file, may hold a user's files.
func TestDirectoryInPlaceOfAManifest(t *testing.T) {
	s := newStore(t)
	create(t, s, "vm1", CreateOptions{Size: 1 << 20})
	create(t, s, "vm2", CreateOptions{Size: 1 << 20})
	temp := s.path(disksDir, "vm2", diskFile) + vfs.TempSuffix
	test.Must(t, os.Mkdir(temp, 0o700))
	test.Must(t, os.WriteFile(filepath.Join(temp, "notes"), nil, 0o600))
	manifest := s.path(disksDir, "vm1", diskFile)
	test.Must(t, os.Remove(manifest))
	test.Must(t, os.Mkdir(manifest, 0o700))
	test.Must(t, os.WriteFile(filepath.Join(manifest, "notes"), nil, 0o600))
	_, err := s.RemoveDamaged(ctx, "vm1")
	test.Must(t, err)
	_, err = s.Check(ctx, CheckOptions{Repair: true})
	test.Must(t, err)
	left := 0
	test.Must(t, filepath.WalkDir(s.dir, func(path string, e fs.DirEntry, err error) error {
		if e != nil && e.Name() == "notes" {
			left++
		}
		return err
	}))
	if left != 2 {
		t.Errorf("%d of 2 files are left", left)
	}
}

// An image without a readable description can be removed, whatever is in its place.
func TestRemoveImageWithoutADescription(t *testing.T) {
	for name, put := range map[string]func(path string) error{
		"directory": func(path string) error {
			return os.MkdirAll(filepath.Join(path, "notes"), 0o700)
		},
		"FIFO":    func(path string) error { return syscall.Mkfifo(path, 0o600) },
		"nothing": func(string) error { return nil },
	} {
		s := newStore(t)
		importRaw(t, s, "img", noise(1, 1<<16))
		path := s.path(imagesDir, "img", imageFile)
		test.Must(t, os.Remove(path))
		test.Must(t, put(path))
		if _, err := s.Remove(t.Context(), "img"); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := os.Stat(s.ImageData("img")); err == nil {
			t.Errorf("%s: it is still there", name)
		}
	}
}

// A manifest of a newer program is not damaged.
func TestRemoveDamagedNewer(t *testing.T) {
	s := newStore(t)
	create(t, s, "vm1", CreateOptions{Size: 1 << 20})
	path := s.path(disksDir, "vm1", diskFile)
	data := readFile(t, path)
	test.Must(t, os.WriteFile(path, []byte(strings.Replace(string(data), `"version": 1`,
		`"version": 2`, 1)), 0o600))
	if _, err := s.RemoveDamaged(ctx, "vm1"); !errors.Is(err, ErrRefused) ||
		!strings.Contains(err.Error(), "newer") {
		t.Errorf("%v", err)
	}
}

// keepLeft removes nothing, as if the process were killed before the removal.
type keepLeft struct{ vfs.FS }

func (keepLeft) RemoveAll(string) error { return nil }
func (keepLeft) Remove(string) error    { return nil }

// entries returns the names in a directory.
func entries(t *testing.T, dir string) (names []string) {
	t.Helper()
	all, err := os.ReadDir(dir)
	test.Must(t, err)
	for _, e := range all {
		names = append(names, e.Name())
	}
	return names
}

// An interrupted check says so in words, not with Go's text.
func TestCheckInterruptedInWords(t *testing.T) {
	k := &Report{}
	k.addFailure(fmt.Errorf("%s: %w", "layers/x/data", context.Canceled))
	if k.Error != "interrupted" {
		t.Error(k.Error)
	}
}
