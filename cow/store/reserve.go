package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"cowblk/cow/vfs"
)

// A store keeps a reserve: files that hold nothing. What frees room, or lets a guest go on, gives one of them up when the
// file system is full; the next change after that makes it again. Several small files are room for inodes, too.
const (
	reserveDir   = "reserve"
	reserveFiles = 16
	// Of one file, in bytes. It is a 256th of what was free: the reserve is a sixteenth at most.
	minReserve, maxReserve = 4 << 10, 128 << 10
)

func (s *Store) reservePath(i int) string { return s.path(reserveDir, fmt.Sprintf("%02d", i)) }

// InNeed runs f, which changes nothing if it fails for want of room. Then it gives up files of the store's reserve, one
// after the other, and runs f again.
func (s *Store) InNeed(f func() error) error {
	for {
		err := f()
		if err == nil || !noSpace(err) || !s.giveUp(err, 0) {
			return err
		}
	}
}

// makeRoom is cow.Options.MakeRoom: for the maps of disks that go on being served half of the reserve stays, so that they
// can be closed.
func (s *Store) makeRoom(why error, closing bool) bool {
	if closing {
		return s.giveUp(why, 0)
	}
	return s.giveUp(why, reserveFiles/2)
}

// giveUp removes the last file of the reserve, if there is one. The first ones stay, keep of them.
func (s *Store) giveUp(why error, keep int) bool {
	for i := reserveFiles - 1; i >= keep; i-- {
		err := s.fs.Remove(s.reservePath(i))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			s.log.Warn("the store's reserve cannot be given up", "err", err)
			return false
		}
		s.log.Warn("the file system is full: a part of the store's reserve is given up", "left", i, "reason", why)
		// Some file systems have the room only when that is durable; others need not.
		_ = s.fs.SyncDir(s.path(reserveDir))
		return true
	}
	return false
}

// refill makes the files of the reserve that are missing, while there is room: once in the life of a Store. Others may
// do the same at the same time. A store without a reserve is as good as any until it is full.
func (s *Store) refill() {
	s.refillOnce.Do(func() {
		host, ok := s.fs.(vfs.RoomFS)
		if !ok {
			return
		}
		// The last one is given up first.
		if there, err := s.exists(s.reservePath(reserveFiles - 1)); err != nil || there {
			return
		}
		free, err := host.Free(s.dir)
		size := min(free/256, maxReserve) &^ 4095
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
	})
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
