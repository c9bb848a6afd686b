package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"cowblk/cow/vfs"
)

// A store keeps a reserve: files that hold nothing. They are given up one by one when the file system is full, and made
// again when there is room: by the command that has used them at its end, and by the next change. Several small files are
// room for inodes, too. The first half is for any command that lets a guest go on or frees room. The second half is for
// two things alone, which must not depend on what others have done before: the maps of served disks when they are closed,
// and the removal of disks and images.
const (
	reserveDir      = "reserve"
	reserveFiles    = 24               // a rollback needs up to 9 inodes; earlier versions have made, and use, the first 16
	reserveForClose = reserveFiles / 2 // the second half, with the lower numbers
	// Of one file, in bytes. It is that part of what was free: the reserve is a sixteenth at most.
	minReserve, maxReserve = 4 << 10, 80 << 10
	reservePart            = 16 * reserveFiles
)

func (s *Store) reservePath(i int) string { return s.path(reserveDir, fmt.Sprintf("%02d", i)) }

// WithReserve runs f, which changes nothing if it fails for want of room. Then it gives up a file of the first half of the
// store's reserve, and runs f again. What f has not used or has freed is put back. An error for want of room says what
// makes some.
func (s *Store) WithReserve(f func() error) error { return s.withReserve(reserveForClose, f) }

func (s *Store) withReserve(keep int, f func() error) error {
	defer s.restoreReserve()
	for {
		err := f()
		if err == nil || !noSpace(err) {
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

// releaseReserve removes the last file of the reserve, if there is one. The first ones stay, keep of them.
func (s *Store) releaseReserve(why error, keep int) bool {
	for i := reserveFiles - 1; i >= keep; i-- {
		size := int64(maxReserve)
		if st, err := s.fs.Stat(s.reservePath(i)); err == nil {
			size = st.Size()
		}
		err := s.fs.Remove(s.reservePath(i))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			s.log.Warn("the store's reserve cannot be given up", "err", err)
			return false
		}
		s.released.Add(1)
		s.releasedSize.Store(size)
		s.log.Warn("the file system is full: a part of the store's reserve is given up", "left", i, "reason", why)
		// Some file systems have the room only when that is durable; others need not.
		_ = s.fs.SyncDir(s.path(reserveDir))
		return true
	}
	return false
}

// fillReserveOnce makes the files of the reserve that are missing, while there is room: once in the life of a Store.
func (s *Store) fillReserveOnce() { s.reserveOnce.Do(s.fillReserve) }

// fillReserve is refill at the end of a command that frees room. Others may do the same at the same time. A store without a
// reserve is as good as any until it is full.
func (s *Store) fillReserve() {
	host, ok := s.fs.(vfs.SpaceFS)
	if !ok || !s.recognized.Load() {
		return
	}
	// The last one is given up first.
	if there, err := s.exists(s.reservePath(reserveFiles - 1)); err != nil || there {
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
		if err := s.makeReserve(s.reservePath(i), size); err != nil && !errors.Is(err, fs.ErrExist) {
			s.log.Debug("the store's reserve is not whole", "err", err)
			return
		}
	}
}

// restoreReserve makes as many files of the reserve again as this Store has given up, while there is room, if only for smaller
// ones: those that are given up last come first.
func (s *Store) restoreReserve() {
	n := s.released.Swap(0)
	for i := 0; i < reserveFiles && n > 0; i++ {
		path := s.reservePath(i)
		if there, err := s.exists(path); err != nil {
			return
		} else if there {
			continue
		}
		err := error(unix.ENOSPC)
		for size := min(s.releasedSize.Load(), maxReserve); noSpace(err) && size >= minReserve; size /= 2 {
			err = s.makeReserve(path, size)
		}
		if err != nil {
			if !errors.Is(err, fs.ErrExist) {
				s.log.Debug("the store's reserve is not whole", "err", err)
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

// minFree is so little room, in bytes, that there may be none for a page of a map: XFS shows what it keeps for itself.
const minFree = 1 << 20

// Full reports whether the store's file system has no room, or next to none, for this user.
func (s *Store) Full() bool {
	host, ok := s.fs.(vfs.SpaceFS)
	if !ok {
		return false
	}
	free, err := host.Free(s.dir)
	return err == nil && free < minFree
}
