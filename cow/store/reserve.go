package store

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"cowblk/cow/layer"
	"cowblk/cow/shell"
	"cowblk/cow/vfs"
)

// A store has a reserve: files without content. They are removed one by one when the file system is
// full, and created again when there is space: at the end of the command that removed them, and by
// the next change. Several small files also reserve inodes. The first half is for any command that
// resumes a guest or frees space. The second half is only for closing the maps of served disks and
// for removals, which must not depend on earlier commands.
const (
	// a rollback needs up to 9 inodes; earlier versions create and use the first 16
	reserveFiles    = 24
	reserveForClose = reserveFiles / 2 // the second half, with the lower numbers
	// Limits of the size of one file, in bytes. The size is 1/reservePart of the free space: the
	// reserve takes at most a sixteenth.
	minReserve, maxReserve = 4 << 10, 80 << 10
	reservePart            = 16 * reserveFiles
)

func (s *Store) reservePath(i int) string { return s.path(reserveDir, fmt.Sprintf("%02d", i)) }

// WithReserve runs f, which changes nothing if it fails with ENOSPC or EDQUOT. In that case it
// removes a file of the first half of the reserve and runs f again. It creates the files again at
// the end. A remaining error gets advice on how to make space.
func (s *Store) WithReserve(f func() error) error { return s.withReserve(reserveForClose, f) }

func (s *Store) withReserve(keep int, f func() error) error {
	defer s.restoreReserve()
	for {
		err := f()
		if err == nil || !noSpace(err) || errors.Is(err, layer.ErrSyncFailed) {
			return err
		}
		if !s.releaseReserve(err, keep) {
			return s.adviseNoSpace(err)
		}
	}
}

// onNoSpace is cow.Options.OnNoSpace.
func (s *Store) onNoSpace(why error, closing bool) bool {
	if closing {
		return s.releaseReserve(why, 0)
	}
	return s.releaseReserve(why, reserveForClose)
}

// releaseReserve removes the highest file of the reserve, except for the lowest keep files. It
// reports whether there was one.
func (s *Store) releaseReserve(why error, keep int) bool {
	for i := reserveFiles - 1; i >= keep; i-- {
		size := int64(maxReserve)
		if st, err := s.fs.Stat(s.reservePath(i)); err == nil {
			size = st.Size()
		}
		err := s.ownReserve(s.reservePath(i))
		if err == nil {
			err = s.fs.Remove(s.reservePath(i))
		}
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, errForeign) {
			continue
		}
		if err != nil {
			s.log.Warn("a file of the store's reserve could not be removed", "err", err)
			return false
		}
		s.released.Add(1)
		s.releasedSize.Store(size)
		s.log.Warn("the file system is full: a file of the store's reserve is removed", "left", i,
			"err", why)
		// Some file systems free the space only when the removal is durable.
		_ = s.fs.SyncDir(s.path(reserveDir))
		return true
	}
	return false
}

// fillReserveOnce calls fillReserve once for each Store.
func (s *Store) fillReserveOnce() { s.reserveOnce.Do(s.fillReserve) }

// fillReserve creates the missing files of the reserve while there is space. Other processes may do
// the same. Errors are ignored: the reserve is needed only on a full file system.
func (s *Store) fillReserve() {
	host, ok := s.fs.(vfs.SpaceFS)
	if !ok || !s.recognized.Load() {
		return
	}
	// The highest file is removed first.
	if exists, err := s.exists(s.reservePath(reserveFiles - 1)); err != nil || exists {
		return
	}
	free, err := host.Free(s.dir)
	size := min(free/reservePart, maxReserve) &^ 4095
	if err != nil || size < minReserve {
		return
	}
	if err := s.fs.MkdirAll(s.path(reserveDir), dirPerm); err != nil {
		s.log.Debug("the store has no reserve", "err", err)
		return
	}
	for i := range reserveFiles {
		if err := s.makeReserve(s.reservePath(i), size); err != nil &&
			!errors.Is(err, fs.ErrExist) {
			s.log.Debug("the store's reserve is incomplete", "err", err)
			return
		}
	}
}

// restoreReserve creates as many files of the reserve as this Store has removed, while there is
// space, with a smaller size if need be. The lowest missing number comes first.
func (s *Store) restoreReserve() {
	n := s.released.Swap(0)
	for i := 0; i < reserveFiles && n > 0; i++ {
		path := s.reservePath(i)
		if exists, err := s.exists(path); err != nil {
			return
		} else if exists {
			continue
		}
		err := error(unix.ENOSPC)
		for size := min(s.releasedSize.Load(), maxReserve); noSpace(err) &&
			size >= minReserve; size /= 2 {
			err = s.makeReserve(path, size)
		}
		if err != nil {
			if !errors.Is(err, fs.ErrExist) {
				s.log.Debug("the store's reserve is incomplete", "err", err)
				return
			}
			continue
		}
		n--
	}
}

func (s *Store) makeReserve(path string, size int64) error {
	f, err := s.fs.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, filePerm)
	if err != nil {
		return err
	}
	r, ok := f.(interface{ Reserve(off, n int64) error })
	if !ok {
		err = errors.ErrUnsupported
	} else {
		err = r.Reserve(0, size)
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		err = errors.Join(err, s.fs.Remove(path))
	}
	return err
}

// minFree is the space in bytes below which even a page of a map may not fit: the free space of XFS
// includes blocks that it reserves.
const minFree = 1 << 20

// Full reports whether the store's file system has less than minFree for this user.
func (s *Store) Full() bool {
	host, ok := s.fs.(vfs.SpaceFS)
	if !ok {
		return false
	}
	free, err := host.Free(s.dir)
	return err == nil && free < minFree
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
