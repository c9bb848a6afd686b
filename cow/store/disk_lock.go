package store

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"cowblk/cow/finding"
	"cowblk/cow/shell"
	"cowblk/cow/vfs"
)

// Lock is the exclusive lock of one disk. Unlock or the end of the process releases it.
type Lock struct {
	s *Store
	// nil: the lock file is missing and cannot be created; nobody has the disk open
	file vfs.File
	name string
	// path of the record in memory (serving_memory.go); empty: the record is in the lock file
	memoryPath string
	// readOnly: the lock file is not writable.
	readOnly bool
}

// lockTries limits the attempts to take a disk's lock. One attempt is not enough: Serving takes the
// lock for a moment to see whether it is free.
const lockTries = 30

// lockWait limits how long a process that will serve a disk waits for a holder that does not serve,
// such as a check or an offline promotion. A supervisor would give up after a few failures.
const lockWait = time.Minute

// servingSize is the minimum length of a lock file in bytes. Overwriting it needs no space on a
// full file system.
const servingSize = 1024

// LockDisk takes the disk's lock. Errors: ErrInUse, which names the holder; ErrNotFound.
func (s *Store) LockDisk(name string) (*Lock, error) {
	return s.lockDisk(context.Background(), name, lockOptions{})
}

// lockOptions for lockDisk.
type lockOptions struct {
	wait     time.Duration // maximum wait for a holder that does not serve the disk
	readOnly bool          // accept a lock file that is not writable
}

func (s *Store) lockDisk(ctx context.Context, name string, o lockOptions) (*Lock, error) {
	if err := CheckName("disk", name); err != nil {
		return nil, err
	}
	if err := s.Trusted(); err != nil {
		return nil, err
	}
	if err := s.trustedDisk(name); err != nil {
		return nil, err
	}
	path := s.path(disksDir, name, lockFile)
	logged := false
	for start, try := time.Now(), 0; ; try++ {
		if try >= lockTries {
			v := s.servingNow(name)
			if v.Socket != "" || time.Since(start) >= o.wait {
				break
			}
			if !logged {
				logged = true
				s.log.Info("waiting for a process that has the disk open", "disk", name, "pid",
					v.PID, "at_most", o.wait)
			}
		}
		l, err := s.openLock(name, path, o.readOnly)
		if err != nil || l.file == nil {
			return l, err
		}
		err = l.file.Lock(true)
		if err == nil && s.sameFile(l.file, path) {
			s.diskLocks.Store(l, true)
			l.restrict()
			if err := l.SetServing(Serving{PID: os.Getpid()}); err != nil {
				return nil, errors.Join(err, l.Unlock())
			}
			return l, nil
		}
		l.file.Close()
		if err != nil && !errors.Is(err, vfs.ErrLocked) {
			return nil, fmt.Errorf("disk %q: %w", name, err)
		}
		// Locked, or replaced between open and lock.
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: %w", s.inUse(name), ctx.Err())
		case <-time.After(lockPoll):
		}
	}
	return nil, s.inUse(name)
}

// newLock creates the lock file of a new disk at its full length, so that the first open needs no
// space. The content need not be durable.
func (tx *txn) newLock() error {
	f, err := tx.s.fs.OpenFile(tx.path("disk", lockFile), os.O_WRONLY|os.O_CREATE, filePerm)
	if err != nil {
		return err
	}
	l := Lock{s: tx.s, file: f}
	return errors.Join(l.write(Serving{}), f.Close())
}

// openLock opens the lock file of a disk and creates it if it is missing.
func (s *Store) openLock(name, path string, readOnly bool) (*Lock, error) {
	l := &Lock{s: s, name: name}
	flags := os.O_RDWR | unix.O_NOFOLLOW
	f, err := s.fs.OpenFile(path, flags, 0)
	if errors.Is(err, fs.ErrNotExist) {
		err = s.WithReserve(func() (err error) {
			f, err = s.fs.OpenFile(path, flags|os.O_CREATE, filePerm)
			return err
		})
	}
	if readOnly && (cannotWrite(err) || noSpace(err)) {
		l.readOnly = true
		f, err = s.fs.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
		if errors.Is(err, fs.ErrNotExist) {
			exists, serr := s.exists(s.path(disksDir, name))
			if serr == nil && exists {
				return l, nil
			}
		}
	}
	switch {
	case err != nil && s.notDirectory(KindDisk, name) != nil:
		return nil, s.notDirectory(KindDisk, name).Err()
	case errors.Is(err, fs.ErrNotExist):
		return nil, s.notFound("disk", name)
	case errors.Is(err, unix.ELOOP):
		return nil, linkedLock(path)
	case cannotWrite(err) && s.mayRead(path):
		return nil, fmt.Errorf(
			"disk %q: %w\nthe store can be read: %s; cowblk export, cowblk check", name, err,
			s.command("serve", name, "--read-only"))
	case err != nil:
		return nil, fmt.Errorf("disk %q: %w", name, err)
	}
	l.file = f
	return l, nil
}

// linkedLock refuses a lock file that is a symbolic link (O_NOFOLLOW, open(2)): its lock may
// protect another disk.
func linkedLock(path string) error {
	return refused(path, "lock of the disk", "a regular file", "a symbolic link",
		"see to it that no process has the disk open, and give the link another name: mv -n "+
			shell.Path(path)+" "+shell.Path(path+".link")+"\nthe next command makes the lock anew")
}

// mayRead reports whether this process can open a file for reading.
func (s *Store) mayRead(path string) bool {
	f, err := s.fs.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err == nil {
		f.Close()
	}
	return err == nil
}

// restrict removes the access of other users that earlier versions granted.
func (l *Lock) restrict() {
	if f, ok := l.file.(vfs.Restricter); ok && !l.readOnly {
		if err := f.Restrict(filePerm); err != nil {
			l.s.log.Warn("other users may open the disk's lock", "disk", l.name, "err", err)
		}
	}
}

// sameFile reports whether path still names the open file f.
func (s *Store) sameFile(f vfs.File, path string) bool {
	id, err := f.Identity()
	if err != nil {
		return false
	}
	st, err := s.fs.Stat(path)
	if err != nil {
		return false
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	return !ok || sys.Ino == id.Inode && sys.Dev == id.Dev
}

// SetServing records for other processes how the disk is served. If the lock file is not writable,
// because the file system is full or read-only, the record is kept in memory (tmpfs). If that fails
// too, other processes learn only the PID, from the kernel.
func (l *Lock) SetServing(v Serving) error {
	if l.file == nil {
		return nil
	}
	for _, path := range []string{v.Socket, v.Control} {
		if err := finding.CheckPath("socket", path); err != nil {
			return err
		}
	}
	err := l.write(v)
	switch {
	case err == nil:
		l.removeMemory()
		return nil
	case !noSpace(err) && !cannotWrite(err):
		return fmt.Errorf("disk %q: lock file: %w", l.name, err)
	}
	if kerr := l.writeMemory(v); kerr != nil && v.Socket != "" {
		l.s.log.Warn("other commands cannot find the disk's sockets: its lock file is not writable, and no directory in memory is usable",
			"disk", l.name, "err", errors.Join(err, kerr))
	}
	return nil
}

// write overwrites the content of the lock file with v. The file does not shrink: on most file
// systems that needs no space.
func (l *Lock) write(v Serving) error {
	if l.readOnly {
		return unix.EROFS
	}
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	size, err := l.file.Size()
	if err != nil {
		return err
	}
	// JSON readers of all versions ignore trailing white space.
	if pad := max(servingSize, min(int(size), maxServing)) - len(data) - 1; pad > 0 {
		data = append(data, bytes.Repeat([]byte{' '}, pad)...)
	}
	data = append(data, '\n')
	_, err = l.file.WriteAt(data, 0)
	return err
}

// Unlock releases the disk.
func (l *Lock) Unlock() error {
	if l.file == nil {
		return nil
	}
	l.removeMemory()
	// The record is ignored once another process has the lock.
	_ = l.write(Serving{})
	l.s.diskLocks.Delete(l)
	return l.file.Close()
}

// heldLock returns the lock of a disk that this Store holds, or nil.
func (s *Store) heldLock(name string) (held *Lock) {
	s.diskLocks.Range(func(l, _ any) bool {
		if l := l.(*Lock); l.name == name {
			held = l
		}
		return held == nil
	})
	return held
}
