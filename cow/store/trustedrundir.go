package store

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"cowblk/cow/shell"
	"cowblk/cow/vfs"
	"cowblk/cow/way"
)

// CheckRunDir refuses a RunDir in which another user could put sockets of his own in the place of this user's. One that is
// not there yet is none's. It is an ErrInvalid.
func (s *Store) CheckRunDir() error { return s.trustedRunDir(s.runDir, true) }

// trustedRunDir is CheckRunDir of any directory for sockets. restrictable: it may be this user's or root's own with a mode
// that is yet to be restricted.
func (s *Store) trustedRunDir(dir string, restrictable bool) error {
	if _, real := s.fs.(vfs.HostFS); !real {
		return nil
	}
	weak, err := way.Check(dir, wayOptions())
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("run directory: %w", err)
	case weak == nil:
		// In one that is sticky others can take the names of sockets.
		if err := checkHeld(dir, "run directory "+dir); err != nil && !restrictable {
			return err
		}
		return nil
	case weak.End && way.Trusted(weak.UID):
		if restrictable {
			return nil
		}
		return writable("run directory "+dir, weak.Mode)
	}
	err = invalidf("run directory %s: expected one that only %s can change, found %s: %s can put a socket in the place of one there", dir, owners(), weak, weak.Who())
	if from := s.getenv(runtimeEnv); filepath.IsAbs(from) && within(from, dir) {
		return fmt.Errorf("%w\n%s is %s: set it to a directory of your own that nobody else can write to, as logging in does", err, runtimeEnv, shell.Word(from))
	}
	return fmt.Errorf("%w\nuse a store in a directory that only %s can change, or give this one back to its owner", err, owners())
}
