package store

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"regexp"
	"strings"
	"syscall"

	"cowblk/cow/shell"
	"cowblk/cow/vfs"
)

// Files of cowblk that it deletes or overwrites by name are recognized by their content: another
// program, or a user, may have a file of the same name.

// errForeign is for a file that cowblk has not made.
var errForeign = errors.New("expected a file of cowblk, found one with other content")

// lockText says what a store's lock file contains.
type lockText int

const (
	lockOther   lockText = iota // another program's
	lockUnknown                 // nothing, or what a power cut has left of lockMagic
	lockOwn                     // lockMagic
)

// readLockText reads the beginning of the lock file.
func (s *Store) readLockText() (lockText, error) {
	text, err := s.beginOf(s.path(lockFile), 4096)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, fs.ErrPermission):
		return lockUnknown, nil // the caller's open reports it
	case err != nil:
		return lockUnknown, fmt.Errorf("store %s: %w", shell.Text(s.dir), err)
	case strings.HasPrefix(string(text), lockMagic):
		return lockOwn, nil
	case strings.HasPrefix(lockMagic, string(bytes.TrimRight(text, "\x00"))):
		return lockUnknown, nil
	}
	return lockOther, nil
}

// beginOf returns at most the first n bytes of a regular file; errForeign: it is of another type.
func (s *Store) beginOf(path string, n int) ([]byte, error) {
	f, err := s.openOwn(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text := make([]byte, n)
	n, err = f.ReadAt(text, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	return text[:n], nil
}

// openOwn opens a regular file for reading. It follows no symbolic link; errForeign.
func (s *Store) openOwn(path string) (vfs.File, error) {
	f, err := s.fs.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if errors.Is(err, syscall.ELOOP) {
		return nil, fmt.Errorf("%s: %w", shell.Text(path), errForeign)
	}
	if err != nil {
		return nil, err
	}
	if st, err := s.fs.Stat(path); err == nil && !st.Mode().IsRegular() {
		f.Close()
		return nil, fmt.Errorf("%s: %w", shell.Text(path), errForeign)
	}
	return f, nil
}

// indexLine is the beginning of a line of an index, of any version. voidLines overwrites the first
// digit.
var indexLine = regexp.MustCompile(`(?m)^[-0-9a-f][0-9a-f]{15} \{"version":`)

// ownIndex returns errForeign for a file in the place of an index, or of its temporary file, that
// contains something else. A missing or empty file, and zeros after a power cut, are accepted.
func (s *Store) ownIndex(path string) error {
	text, err := s.beginOf(path, compactFrom)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if len(bytes.Trim(text, "\n\x00")) == 0 || indexLine.Match(text) {
		return nil
	}
	return fmt.Errorf("%s: %w", shell.Text(path), errForeign)
}

// ownReserve returns errForeign for a file in the place of one of the reserve that contains
// something: cowblk writes nothing to them.
func (s *Store) ownReserve(path string) error {
	f, err := s.openOwn(path)
	if err != nil {
		return err
	}
	defer f.Close()
	size, err := f.Size()
	if err != nil {
		return err
	}
	text := make([]byte, maxReserve+1)
	n, err := f.ReadAt(text, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if size > maxReserve || len(bytes.Trim(text[:n], "\x00")) > 0 {
		return fmt.Errorf("%s: %w", shell.Text(path), errForeign)
	}
	return nil
}
