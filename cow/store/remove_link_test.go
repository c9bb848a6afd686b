package store

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"cowblk/internal/test"
)

// rm of an image whose directory is a symbolic link removes the link only.
func TestRemoveImageBehindALink(t *testing.T) {
	for _, c := range []struct {
		what string
		to   func(t *testing.T, s *Store) (link, target string)
	}{
		{"a directory outside", func(t *testing.T, s *Store) (string, string) {
			away := filepath.Join(t.TempDir(), "g")
			test.Must(t, os.Rename(s.path(imagesDir, "g"), away))
			return "g", away
		}},
		{"an image of another store", func(t *testing.T, s *Store) (string, string) {
			other := newStore(t)
			importRaw(t, other, "h", noise(2, 1<<16))
			return "h", other.path(imagesDir, "h")
		}},
		{"another image of this store", func(t *testing.T, s *Store) (string, string) {
			create(t, s, "v", CreateOptions{From: "g"})
			return "golden", s.path(imagesDir, "g")
		}},
		{"a directory without an image", func(t *testing.T, s *Store) (string, string) {
			return "photos", t.TempDir()
		}},
	} {
		t.Run(c.what, func(t *testing.T) {
			s := newStore(t)
			importRaw(t, s, "g", noise(1, 1<<16))
			link, target := c.to(t, s)
			write(t, filepath.Join(target, "notes.txt"), []byte("mine"))
			test.Must(t, os.Symlink(target, s.path(imagesDir, link)))
			before := snapshot(t, target)
			test.Must(t, test.Err(s.Remove(ctx, link)))
			check(t, s, CheckOptions{Repair: true})
			create(t, s, "next", CreateOptions{Size: 4096})
			sameFiles(t, before, snapshot(t, target))
			test.ErrorIs(t, test.Err(os.Lstat(s.path(imagesDir, link))), os.ErrNotExist, "the link")
			if left := entries(t, s.path(tmpDir)); len(left) > 0 {
				t.Errorf("in tmp: %v", left)
			}
		})
	}
}

// rm --damaged of a disk whose directory is a symbolic link removes the link only.
func TestRemoveDamagedDiskBehindALink(t *testing.T) {
	s := newStore(t)
	create(t, s, "v", CreateOptions{Size: 4096})
	away := filepath.Join(t.TempDir(), "v")
	test.Must(t, os.Rename(s.path(disksDir, "v"), away))
	test.Must(t, os.Symlink(away, s.path(disksDir, "v")))
	test.Must(t, os.Truncate(filepath.Join(away, diskFile), 20))
	before := snapshot(t, away)
	test.Must(t, test.Err(s.RemoveDamaged(ctx, "v")))
	create(t, s, "next", CreateOptions{Size: 4096})
	sameFiles(t, before, snapshot(t, away))
	test.ErrorIs(t, test.Err(os.Lstat(s.path(disksDir, "v"))), os.ErrNotExist, "the link")
}

// An image directory renamed by hand is the image that disks name, and stays.
func TestRemoveRenamedImage(t *testing.T) {
	for what, damage := range map[string]func(path string) error{
		"renamed":               func(string) error { return nil },
		"renamed, and cut off":  func(path string) error { return os.Truncate(path, 10) },
		"renamed, without json": os.Remove,
	} {
		s := newStore(t)
		importRaw(t, s, "g", noise(1, 1<<16))
		create(t, s, "v", CreateOptions{From: "g"})
		saw := content(t, s, "v")
		test.Must(t, os.Rename(s.path(imagesDir, "g"), s.path(imagesDir, "g2")))
		path := s.path(imagesDir, "g2", imageFile)
		saved := first(os.ReadFile(path))
		test.Must(t, damage(path))
		before := snapshot(t, s.path(imagesDir))
		_, perr := s.PlanRemove("g2")
		_, err := s.Remove(ctx, "g2")
		if !errors.Is(err, ErrRefused) || !errors.Is(perr, ErrRefused) ||
			!strings.Contains(err.Error(), "g2") {
			t.Errorf("%s: expected a refusal, found %v and %v", what, perr, err)
			continue
		}
		sameFiles(t, before, snapshot(t, s.path(imagesDir)))
		test.Must(t, os.WriteFile(path, saved, 0o600))
		test.Must(t, os.Rename(s.path(imagesDir, "g2"), s.path(imagesDir, "g")))
		if !bytes.Equal(content(t, s, "v"), saw) {
			t.Errorf("%s: the disk shows something else", what)
		}
	}
}
