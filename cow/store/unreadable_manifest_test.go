package store

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"cowblk/cow/cowtest/faultfs"
	"cowblk/cow/vfs"
	"cowblk/internal/test"
)

// brokenFile returns the file system on which one file cannot be opened.
func brokenFile(path string, err error) vfs.FS {
	return faultfs.Over(vfs.OS{}, func(c faultfs.Call) (f faultfs.Fault) {
		if c.Op == "open" && c.Name == path {
			f.Err = err
		}
		return f
	})
}

// A manifest that was changed in place since the index has read it, and that cannot be read while
// another disk gives up layers, keeps them.
func TestStaleIndexOfAnUnreadableManifest(t *testing.T) {
	ways := map[string]func(t *testing.T, s *Store) (restore func()){
		"EIO": func(t *testing.T, s *Store) func() {
			s.fs = brokenFile(s.path(disksDir, "b", diskFile), syscall.EIO)
			return func() { s.fs = vfs.OS{} }
		},
		"EACCES": func(t *testing.T, s *Store) func() {
			s.fs = brokenFile(s.path(disksDir, "b", diskFile), syscall.EACCES)
			return func() { s.fs = vfs.OS{} }
		},
		"missing": func(t *testing.T, s *Store) func() {
			path := s.path(disksDir, "b", diskFile)
			test.Must(t, os.Rename(path, path+".bak"))
			return func() { test.Must(t, os.Rename(path+".bak", path)) }
		},
		"cut off": func(t *testing.T, s *Store) func() {
			path := s.path(disksDir, "b", diskFile)
			saved := first(os.ReadFile(path))
			test.Must(t, os.Truncate(path, 0))
			return func() { test.Must(t, os.WriteFile(path, saved, 0o600)) }
		},
		"link to a file system that is not mounted": func(t *testing.T, s *Store) func() {
			away := filepath.Join(t.TempDir(), "b")
			test.Must(t, os.Rename(s.path(disksDir, "b"), away))
			test.Must(t, os.Symlink(away, s.path(disksDir, "b")))
			test.Must(t, os.Rename(away, away+".x"))
			return func() { test.Must(t, os.Rename(away+".x", away)) }
		},
	}
	commands := map[string]func(s *Store) error{
		"rm": func(s *Store) error { _, err := s.Remove(ctx, "a"); return err },
		"rollback": func(s *Store) error {
			_, err := s.Rollback(ctx, Ref{"a", "t1"})
			return err
		},
		"check --repair": func(s *Store) error {
			_, err := s.Check(ctx, CheckOptions{Repair: true, Prune: true})
			return err
		},
		"clean-up": func(s *Store) error {
			tx, err := s.begin(ctx)
			if err != nil {
				return err
			}
			var m *Manifest
			if m, err = s.Disk("a"); err == nil {
				err = errors.Join(tx.journalLayers("a", m.Head().UUID, m.Layers[1].UUID),
					os.RemoveAll(s.path(disksDir, "a")))
				tx.close()
			}
			return errors.Join(err, ignoreCreated(s))
		},
		"clean-up after a removal": func(s *Store) error {
			out := s.path(tmpDir, removalPrefix+"0d6ae1de-4bd2-4d9e-8f1c-1f1b5a1d1c11")
			return errors.Join(os.MkdirAll(s.path(tmpDir), 0o700), os.Rename(s.path(disksDir, "a"),
				out), ignoreCreated(s))
		},
	}
	for way, spoil := range ways {
		for command, do := range commands {
			t.Run(command+", "+way, func(t *testing.T) {
				s := newStore(t)
				s.clockMargin = 0
				create(t, s, "a", CreateOptions{Size: 1 << 20})
				for i, tag := range []string{"t1", "t2"} {
					put(t, s, "a", noise(uint64(i), 4096), int64(i)*8192)
					test.Must(t, test.Err(s.Promote(ctx, []string{"a"}, tag)))
				}
				create(t, s, "b", CreateOptions{Size: 1 << 20})
				create(t, s, "z", CreateOptions{Size: 4096})
				test.Must(t, test.Err(s.Remove(ctx, "z")))
				saw := content(t, s, "a")
				text := first(os.ReadFile(s.path(disksDir, "a", diskFile)))
				test.Must(t, os.WriteFile(s.path(disksDir, "b", diskFile),
					bytes.Replace(text, []byte(`"name": "a"`), []byte(`"name": "b"`), 1), 0o600))
				restore := spoil(t, s)
				test.Must(t, do(s))
				restore()
				if command == "rollback" || command == "check --repair" {
					test.Must(t, test.Err(s.Remove(ctx, "a")))
				}
				if !bytes.Equal(content(t, s, "b"), saw) {
					t.Error("the disk shows something else")
				}
			})
		}
	}
}

// ignoreCreated runs a command that cleans up first.
func ignoreCreated(s *Store) error {
	_, err := s.Create(ctx, "next", CreateOptions{Size: 4096})
	return err
}
