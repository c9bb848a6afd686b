package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// CheckOpenFiles returns an ErrRefused if the files of a disk that this process has open were moved
// or replaced: a change by name would affect another disk or none.
func (s *Store) CheckOpenFiles(m *Manifest) error {
	misplaced := func(path, what, found string) error {
		return refused(path, fmt.Sprintf("%s of disk %q, which is open", what, m.Name),
			"it to be here", found,
			"what is written is only in open files: copy the disk from within the guest before this process ends")
	}
	head := s.paths(m.Head())
	for _, f := range []struct{ path, what string }{
		{s.path(disksDir, m.Name), "directory"}, {head.Map, "map"}, {head.Data, "data"},
	} {
		exists, err := s.exists(f.path)
		if err != nil {
			return fmt.Errorf("disk %q: %w", m.Name, err)
		}
		if !exists {
			return misplaced(f.path, f.what, "that it was removed")
		}
	}
	return s.checkLockFile(m, misplaced)
}

// checkLockFile checks that the disk's lock file is the one that this process has locked. A flock
// belongs to the inode, not to the name.
func (s *Store) checkLockFile(m *Manifest, misplaced func(path, what, found string) error) error {
	path := s.path(disksDir, m.Name, lockFile)
	f, err := s.fs.OpenFile(path, os.O_RDONLY, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return misplaced(path, "lock", "that it was removed")
	case errors.Is(err, fs.ErrPermission):
		// Perhaps only for this process: the sandbox may allow only the original files.
		return misplaced(path, "lock",
			"another one, which cannot be opened: the files were replaced")
	case err != nil:
		return fmt.Errorf("disk %q: %w", m.Name, err)
	}
	defer f.Close()
	id, err := f.Identity()
	if err != nil {
		return fmt.Errorf("disk %q: %w", m.Name, err)
	}
	l := s.heldLock(m.Name)
	if l == nil {
		return misplaced(path, "lock", "that this process does not hold it")
	}
	ours, err := l.file.Identity()
	if err != nil {
		return fmt.Errorf("disk %q: %w", m.Name, err)
	}
	if !id.SameFile(ours) {
		return misplaced(path, "lock", "another one: the files were replaced")
	}
	return nil
}
