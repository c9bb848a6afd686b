package store

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/uuid"

	"cowblk/internal/test"
)

// An image stays while a layer that no disk names lies on it, whatever has become of the index: its
// disk may have been moved away.
func TestImageOfADiskThatWasMovedAway(t *testing.T) {
	for name, harm := range map[string]func(s *Store) error{
		"removed": func(s *Store) error { return os.RemoveAll(s.path(indexDir)) },
		"zeros": func(s *Store) error {
			return os.WriteFile(s.path(indexDir, indexFile), make([]byte, 512), filePerm)
		},
		"of before": func(s *Store) error {
			return os.WriteFile(s.path(indexDir, indexFile), []byte("\n"), filePerm)
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStore(t)
			importRaw(t, s, "golden", make([]byte, 1<<20))
			create(t, s, "vm1", CreateOptions{From: "golden"})
			away := filepath.Join(t.TempDir(), "vm1")
			test.Must(t, os.Rename(s.path(disksDir, "vm1"), away))
			test.Must(t, harm(s))
			_, err := s.Remove(t.Context(), "golden")
			test.ErrorIs(t, err, ErrInUse)
			test.Must(t, os.Rename(away, s.path(disksDir, "vm1")))
			content(t, s, "vm1")
			_, err = s.Remove(t.Context(), "vm1")
			test.Must(t, err)
			_, err = s.Remove(t.Context(), "golden")
			test.Must(t, err)
		})
	}
}

// A transaction that a dead process has left behind its work does not take the layers of a disk
// that was moved away since.
func TestMovedAwayBehindAnInterruptedCommand(t *testing.T) {
	for name, c := range map[string]struct {
		promoted, named bool
	}{
		"create":                          {false, true},
		"create of an earlier version":    {false, false},
		"promotion":                       {true, true},
		"promotion of an earlier version": {true, false},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStore(t)
			create(t, s, "other", CreateOptions{Size: 1 << 20})
			m := create(t, s, "vm1", CreateOptions{Size: 1 << 20})
			if c.promoted {
				_, err := s.Promote(t.Context(), []string{"vm1"}, "t")
				test.Must(t, err)
				m = first(s.Disk("vm1"))
			}
			j := journal{Layers: []uuid.UUID{m.Head().UUID}}
			if c.named {
				j.Disks = []string{"vm1"}
			}
			dir := s.path(tmpDir, uuid.NewString())
			test.Must(t, os.MkdirAll(dir, 0o700))
			test.Must(t, os.WriteFile(filepath.Join(dir, lockFile), nil, filePerm))
			test.Must(t, os.WriteFile(filepath.Join(dir, journalFile), first(json.Marshal(j)),
				filePerm))
			test.Must(t, os.RemoveAll(s.path(indexDir)))
			away := filepath.Join(t.TempDir(), "vm1")
			test.Must(t, os.Rename(s.path(disksDir, "vm1"), away))
			_, err := s.Remove(t.Context(), "other")
			test.Must(t, err)
			if left := entries(t, s.path(tmpDir)); len(left) > 0 {
				t.Errorf("in tmp: %v", left)
			}
			test.Must(t, os.Rename(away, s.path(disksDir, "vm1")))
			content(t, s, "vm1")
		})
	}
}
