package store

import (
	"errors"
	"fmt"
	"os"

	"cowblk/cow/vfs"
)

// File descriptors that a promotion takes. It must not run out of them half way, when it can neither go on nor back.
const (
	sparePerDisk = 8 // the new head's, those of the former head when it is sealed, each once more for direct I/O
	spareAtOnce  = 4 // locks, directories and files that are open for a moment
)

// spare are files that are open for nothing but the descriptors that they hold.
type spare []vfs.File

// reserve opens n of them, or none: the process may not have so many more, and its error says so.
func (s *Store) reserve(n int) (r spare, err error) {
	for range n {
		f, err := s.fs.OpenFile(s.path(lockFile), os.O_RDONLY, 0)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("%d open files are needed: %w", n, err), r.free(len(r)))
		}
		r = append(r, f)
	}
	return r, nil
}

// free gives n of them back.
func (r *spare) free(n int) error {
	var errs []error
	for _, f := range (*r)[len(*r)-n:] {
		errs = append(errs, f.Close())
	}
	*r = (*r)[:len(*r)-n]
	return errors.Join(errs...)
}
