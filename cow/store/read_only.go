package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"cowblk/cow/vfs"
)

// A store may be read-only for this process: a file system that was remounted after an error, a
// snapshot, a read-only bind mount, a store of another user. It can be checked and listed, and its
// disks can be exported and served read-only.

// lockedToRead runs f, which only reads, with the store locked. It runs f without the lock if this
// process cannot take it.
func (s *Store) lockedToRead(ctx context.Context, f func() error) error {
	ran := false
	err := s.locked(ctx, func() error {
		ran = true
		return f()
	})
	if ran || !cannotWrite(err) {
		return err
	}
	lock, err := s.fs.OpenFile(s.path(lockFile), os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return f()
	}
	if err != nil {
		return fmt.Errorf("store %s: %w", s.dir, err)
	}
	// Shared: readers do not exclude each other, and a change by another process waits.
	if err := lock.Lock(false); err != nil && !errors.Is(err, vfs.ErrLocked) {
		return errors.Join(fmt.Errorf("store %s: %w", s.dir, err), lock.Close())
	}
	defer lock.Close()
	return f()
}

// refuseUnfinished refuses a disk if an interrupted change of several disks has reached only some
// of them.
func (s *Store) refuseUnfinished(disk string) error {
	dirs, err := s.txnDirs()
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		c, err := s.readChange(dir)
		if err != nil {
			return &unfinishedError{err: err}
		}
		if u := (unfinishedError{disks: c.disks()}); c == nil || !u.concerns(disk) {
			continue
		}
		if stale, err := s.isStale(dir); err != nil || !stale {
			continue // a process elsewhere, which can write the store, is changing it
		}
		for i, m := range c.To {
			if now, err := s.Disk(m.Name); err == nil && now.Head().UUID == c.From[i] {
				return refused(dir, "change of several disks",
					"none, or one that has reached all of them",
					"that disk "+m.Name+" is still as before",
					"open a disk once where the store can be written: that finishes the change")
			}
		}
	}
	return nil
}
