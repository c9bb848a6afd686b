package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"cowblk/cow/vfs"
)

// A store may be one that this process can only read: a file system that was remounted after an error, a snapshot, a
// read-only bind mount, a store of another user. It can be checked and listed, its disks exported and served read-only.

// lockedToRead runs f, which only reads, while nobody changes the store, as far as this process can see to that: what it
// cannot lock it reads all the same.
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
	// Shared: many may read, and a change elsewhere, where the store can be written, waits for this moment.
	if err := lock.Lock(false); err != nil && !errors.Is(err, vfs.ErrLocked) {
		return errors.Join(fmt.Errorf("store %s: %w", s.dir, err), lock.Close())
	}
	defer lock.Close()
	return f()
}

// refuseHalfChanged refuses to read disks of which it is not known what they are: a change of several disks was interrupted,
// and has reached some of them.
func (s *Store) refuseHalfChanged(disk string) error {
	entries, err := s.fs.ReadDir(s.path(tmpDir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !isTxnDir(e) {
			continue
		}
		dir := s.path(tmpDir, e.Name())
		c, err := s.readChange(dir)
		if err != nil {
			return &unfinishedError{err: err}
		}
		if u := (unfinishedError{disks: c.disks()}); c == nil || !u.concerns(disk) {
			continue
		}
		if stale, err := s.isStale(dir); err != nil || !stale {
			continue // a process elsewhere, where the store can be written, is about it
		}
		for i, m := range c.To {
			if now, err := s.Disk(m.Name); err == nil && now.Head().UUID == c.From[i] {
				return &Mismatch{
					File: dir, What: "change of several disks", Expected: "none, or one that has reached all of them", Found: "that disk " + m.Name + " is still as before",
					Advice: "open a disk once where the store can be written: that finishes the change",
				}
			}
		}
	}
	return nil
}

// replaceRunDir is the directory for the sockets of a store that cannot be written, whose run directory run lies in it:
// one of this user's, named after the store's directory dir. Empty: run can be used.
func replaceRunDir(o *Options, dir, run string) string {
	host, ok := o.FS.(vfs.HostFS)
	if !ok || !within(dir, run) {
		return ""
	}
	// Of what there is: neither the run directory nor the store need be there yet.
	for at := run; within(dir, at); at = filepath.Dir(at) {
		err := host.Writable(at)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if !cannotWrite(err) {
			return ""
		}
		break
	}
	if _, err := o.FS.Stat(dir); err != nil {
		return ""
	}
	return otherRunDir(o.Getenv, dir)
}

// otherRunDir is a directory of this user's that is named after the store in dir, not in it.
func otherRunDir(getenv func(string) string, dir string) string {
	name := "store-" + shortName(dir)
	if d := userRunDir(getenv); d != "" {
		return filepath.Join(d, name)
	}
	return filepath.Join(ownMemoryDir(), name)
}

// OtherRunDir is a directory for sockets that cannot be made in RunDir, because the file system is full. It need not exist.
func (s *Store) OtherRunDir() string { return otherRunDir(s.getenv, s.dir) }

// MakeOtherRunDir creates OtherRunDir.
func (s *Store) MakeOtherRunDir() error { return s.makeRunDir(s.OtherRunDir()) }

func (s *Store) makeRunDir(dir string) error {
	if parent := filepath.Dir(dir); parent == ownMemoryDir() {
		if sfs, ok := s.fs.(vfs.SharedFS); ok {
			if err := sfs.MakeSharedDir(parent); err != nil {
				return fmt.Errorf("run directory: %w", err)
			}
		}
	}
	if err := makeDir(s.fs, dir, enterPerm); err != nil {
		return fmt.Errorf("run directory: %w", err)
	}
	if err := s.trustedRunDir(dir, true); err != nil {
		return err
	}
	restrictDir(s, filepath.Dir(dir), filepath.Base(dir), enterPerm)
	return s.trustedRunDir(dir, false)
}

// CannotCreate reports whether an error says that nothing can be made in a directory: no space, no share of it left, a file
// system that is only read.
func CannotCreate(err error) bool { return noSpace(err) || errors.Is(err, unix.EROFS) }

// within reports whether path is dir or below it. Both are clean.
func within(dir, path string) bool {
	return path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}
