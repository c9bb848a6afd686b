package store

import (
	"fmt"
	"os"
)

// InPlace returns an ErrRefused if the files of a disk, which this process has open, are not in their places any more: a
// change made there would be one of another disk, or of none.
func (s *Store) InPlace(m *Manifest) error {
	misplaced := func(path, what, found string) error {
		return &Mismatch{File: path, What: fmt.Sprintf("%s of disk %q, which is open", what, m.Name), Expected: "it to be here", Found: found,
			Advice: "what is written is only in open files: copy the disk from within the guest before this process ends"}
	}
	head := s.paths(m.Head())
	for _, f := range []struct{ path, what string }{
		{s.path(disksDir, m.Name), "directory"}, {head.Map, "map"}, {head.Data, "data"},
	} {
		there, err := s.exists(f.path)
		if err != nil {
			return fmt.Errorf("disk %q: %w", m.Name, err)
		}
		if !there {
			return misplaced(f.path, f.what, "that it was removed")
		}
	}
	// The lock is one of a file, not of a name: another file has another lock.
	if v, held := s.Serving(m.Name); !held || v.PID != os.Getpid() {
		return misplaced(s.path(disksDir, m.Name, lockFile), "lock", "another one: the files were replaced")
	}
	return nil
}
