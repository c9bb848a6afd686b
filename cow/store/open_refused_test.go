package store

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"cowblk/internal/test"
)

// A refused open changes nothing and says which file, what was expected, what was found, and what
// to do.
func TestRefusedOpen(t *testing.T) {
	base := noise(1, imageSize)
	// Each case damages the store. vm1 and vm2 are clones of the same tag, "place" lies on a file
	// in place.
	tests := []struct {
		name   string
		disk   string
		damage func(t *testing.T, s *Store, basePath string) (file string)
		words  []string
	}{
		{"base in place touched", "place", func(t *testing.T, s *Store, base string) string {
			test.Must(t, os.Chtimes(base, time.Time{}, time.Unix(1e9, 5)))
			return base
		}, []string{"modification time", "expected", "found 2001-09-09",
			"cowblk trust-base place"}},
		{"base in place changed", "place", func(t *testing.T, s *Store, base string) string {
			return write(t, base, noise(2, imageSize))
		}, []string{"fingerprint", "put the original content back"}},
		{"base in place changed, same time", "place", func(t *testing.T, s *Store,
			base string) string {
			st, _ := os.Stat(base)
			write(t, base, noise(2, imageSize))
			os.Chtimes(base, time.Time{}, st.ModTime())
			return base
		}, []string{"expected", "found"}},
		{"base in place longer", "place", func(t *testing.T, s *Store, base string) string {
			return write(t, base, append(noise(1, imageSize), make([]byte, 512)...))
		}, []string{"expected 1049088 bytes", "found 1049600 bytes"}},
		{"base in place shorter", "place", func(t *testing.T, s *Store, base string) string {
			return write(t, base, noise(1, imageSize-512))
		}, []string{"expected at least 1049088 bytes", "found 1048576 bytes"}},
		{"base in place gone", "place", func(t *testing.T, s *Store, base string) string {
			os.Remove(base)
			return base
		}, []string{"no such file", "put it back"}},
		{"image changed", "vm1", func(t *testing.T, s *Store, _ string) string {
			os.Remove(s.ImageData("img"))
			return write(t, s.ImageData("img"), noise(2, imageSize))
		}, []string{"chunk digest", "expected", "found", "backup"}},
		{"image gone", "vm1", func(t *testing.T, s *Store, _ string) string {
			os.RemoveAll(s.path(imagesDir, "img"))
			return s.path(imagesDir, "img")
		}, []string{"expected an image", "found none"}},
		{"image replaced by another", "vm1", func(t *testing.T, s *Store, _ string) string {
			os.RemoveAll(s.path(imagesDir, "img"))
			importRaw(t, s, "img", noise(3, imageSize))
			return s.path(imagesDir, "img", imageFile)
		}, []string{"another image of the same name"}},
		{"heads exchanged", "vm1", func(t *testing.T, s *Store, _ string) string {
			a, b := s.path(head(t, s, "vm1").Map), s.path(head(t, s, "vm2").Map)
			os.Rename(a, a+"x")
			os.Rename(b, a)
			os.Rename(a+"x", b)
			return a
		}, []string{"UUID", "manifest"}},
		{"map truncated", "vm1", func(t *testing.T, s *Store, _ string) string {
			p := s.path(head(t, s, "vm1").Map)
			os.Truncate(p, 4096)
			return p
		}, []string{"expected", "found"}},
		{"map header damaged", "vm1", func(t *testing.T, s *Store, _ string) string {
			p := s.path(head(t, s, "vm1").Map)
			flip(t, p, 100)
			return p
		}, []string{"checksum", "expected", "found"}},
		{"sealed map damaged", "vm1", func(t *testing.T, s *Store, _ string) string {
			m, _ := s.Disk("vm1")
			p := s.path(m.Layers[0].Map)
			flip(t, p, 4096)
			return p
		}, []string{"checksum", "expected", "found"}},
		{"sealed data truncated", "vm1", func(t *testing.T, s *Store, _ string) string {
			m, _ := s.Disk("vm1")
			p := s.path(m.Layers[0].Data)
			os.Truncate(p, 0)
			return p
		}, []string{"expected", "found"}},
		{"layer gone", "vm1", func(t *testing.T, s *Store, _ string) string {
			m, _ := s.Disk("vm1")
			p := s.path(m.Layers[0].Map)
			os.Remove(p)
			return p
		}, []string{"no such file"}},
		{"manifest cut", "vm1", func(t *testing.T, s *Store, _ string) string {
			p := s.path(disksDir, "vm1", diskFile)
			os.Truncate(p, 100)
			return p
		}, []string{"end of the document", "backup"}},
		{"manifest of a newer program", "vm1", func(t *testing.T, s *Store, _ string) string {
			p := s.path(disksDir, "vm1", diskFile)
			data, _ := os.ReadFile(p)
			return write(t, p, bytes.Replace(data, []byte(`"version": 1`), []byte(`"version": 2`),
				1))
		}, []string{"version 2", "newer"}},
		{"manifest with an unknown member", "vm1", func(t *testing.T, s *Store, _ string) string {
			p := s.path(disksDir, "vm1", diskFile)
			data, _ := os.ReadFile(p)
			return write(t, p, bytes.Replace(data, []byte(`"version": 1`),
				[]byte(`"version": 1, "encrypted": true`), 1))
		}, []string{"encrypted"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newStore(t)
			importRaw(t, s, "img", base)
			basePath := tempFile(t, "base.raw", base)
			create(t, s, "place", CreateOptions{Base: basePath})
			create(t, s, "vm1", CreateOptions{From: "img"})
			put(t, s, "vm1", noise(5, 8192), 0)
			test.Must(t, test.Err(s.Promote(ctx, []string{"vm1"}, "t")))
			create(t, s, "vm2", CreateOptions{From: "vm1@t"})
			file := tt.damage(t, s, basePath)
			before := snapshot(t, s.Dir(), filepath.Dir(basePath))
			o, err := s.OpenDisk(ctx, tt.disk, OpenOptions{})
			if err == nil {
				o.Close()
				t.Fatal("opened")
			}
			if !errors.Is(err, ErrRefused) && !errors.Is(err, os.ErrNotExist) {
				t.Errorf("error is not ErrRefused: %v", err)
			}
			for _, w := range append(tt.words, file) {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("%q is missing in: %v", w, err)
				}
			}
			sameFiles(t, before, snapshot(t, s.Dir(), filepath.Dir(basePath)))
			if l, err := s.LockDisk(tt.disk); err != nil {
				t.Errorf("the lock was not given back: %v", err)
			} else {
				l.Unlock()
			}
		})
	}
}

func head(t *testing.T, s *Store, disk string) *Layer {
	t.Helper()
	m := manifestOf(t, s, disk)
	return m.Head()
}

func flip(t *testing.T, path string, off int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	test.Must(t, err)
	defer f.Close()
	b := []byte{0}
	test.Must(t, test.Err(f.ReadAt(b, off)))
	b[0] ^= 0x40
	test.Must(t, test.Err(f.WriteAt(b, off)))
}
