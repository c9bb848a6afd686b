package store

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"cowblk/cow/shell"
	"cowblk/cow/vfs"
)

// Lock is the right to open one disk. It ends with Unlock or with the process.
type Lock struct {
	s          *Store
	file       vfs.File // nil: there is no lock file, and none could be made; nobody has the disk open then
	name       string
	memoryPath string // path of the file in memory that says who serves the disk; empty: the lock file does
	// readOnly: the lock file cannot be written.
	readOnly bool
}

// lockTries bounds the wait for a disk's lock: Serving takes the lock for a moment to see whether it is free, which
// must not make an opener fail.
const lockTries = 30

// lockWait is how long a process that is to serve a disk waits for one that only uses it: a check, a promotion of a
// stopped disk. Its supervisor would give it up after a few refusals.
const lockWait = time.Minute

// servingSize is the length of a lock file, in bytes: its content is written over what is there, which takes no room on
// a full file system.
const servingSize = 1024

// LockDisk takes the disk's lock. ErrInUse names who holds it; ErrNotFound.
func (s *Store) LockDisk(name string) (*Lock, error) {
	return s.lockDisk(context.Background(), name, lockOptions{})
}

// lockOptions for lockDisk.
type lockOptions struct {
	wait     time.Duration // for as long as the holder serves nobody, at most
	readOnly bool          // the disk is only read: its lock file may be one that cannot be written
}

func (s *Store) lockDisk(ctx context.Context, name string, o lockOptions) (*Lock, error) {
	if err := CheckName("disk", name); err != nil {
		return nil, err
	}
	if err := s.trusted(); err != nil {
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
				s.log.Info("waiting for a process that has the disk open", "disk", name, "pid", v.PID, "at_most", o.wait)
			}
		}
		l, err := s.openLock(name, path, o.readOnly)
		if err != nil || l.file == nil {
			return l, err
		}
		err = l.file.Lock(true)
		if err == nil && s.sameFile(l.file, path) {
			s.diskLocks.add(l)
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
		// Locked, or removed and made anew between open and lock.
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: %w", s.inUse(name), ctx.Err())
		case <-time.After(lockPoll):
		}
	}
	return nil, s.inUse(name)
}

// newLock makes the lock file of a new disk, with content: a disk that is opened for the first time needs no room for it
// then. Its content need not be durable.
func (tx *txn) newLock() error {
	f, err := tx.s.fs.OpenFile(tx.path("disk", lockFile), os.O_WRONLY|os.O_CREATE, filePerm)
	if err != nil {
		return err
	}
	l := Lock{s: tx.s, file: f}
	return errors.Join(l.write(Serving{}), f.Close())
}

// openLock opens the lock file of a disk, and makes it if there is none.
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
			there, serr := s.exists(s.path(disksDir, name))
			if serr == nil && there {
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
		return nil, fmt.Errorf("disk %q: %w\nthe store can be read: %s; cowblk export, cowblk check", name, err, s.command("serve", name, "--read-only"))
	case err != nil:
		return nil, fmt.Errorf("disk %q: %w", name, err)
	}
	l.file = f
	return l, nil
}

// linkedLock refuses a lock file that is a symbolic link (O_NOFOLLOW, open(2)): whose lock that is nobody can say.
func linkedLock(path string) error {
	return &Mismatch{File: path, What: "lock of the disk", Expected: "a regular file", Found: "a symbolic link",
		Advice: "see to it that no process has the disk open, and give the link another name: mv -n " + shell.Path(path) + " " + shell.Path(path+".link") + "\nthe next command makes the lock anew"}
}

// mayRead reports whether a file can be opened for reading.
func (s *Store) mayRead(path string) bool {
	f, err := s.fs.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err == nil {
		f.Close()
	}
	return err == nil
}

// cannotWrite reports whether an error says that this process cannot change a file, which it may still be able to read:
// a read-only file system, another user's file.
func cannotWrite(err error) bool {
	return errors.Is(err, unix.EROFS) || errors.Is(err, fs.ErrPermission)
}

// noSpace reports whether an error says that the file system, or the user's share of it, is full.
func noSpace(err error) bool { return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) }

// restrict takes from other users what an earlier version has let them open.
func (l *Lock) restrict() {
	if f, ok := l.file.(vfs.Restricter); ok && !l.readOnly {
		if err := f.Restrict(filePerm); err != nil {
			l.s.log.Warn("other users may open the disk's lock", "disk", l.name, "err", err)
		}
	}
}

// sameFile reports whether path still leads to the open file f.
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

// SetServing records who serves the disk, for other processes to find. Where the lock file cannot be written, because
// the file system is full or read-only, the record is kept in memory (tmpfs), and where that is not to be had either,
// other processes find out from the kernel which process it is, and not where its sockets are.
func (l *Lock) SetServing(v Serving) error {
	if l.file == nil {
		return nil
	}
	for _, path := range []string{v.Socket, v.Control} {
		if err := checkPathText("socket", path); err != nil {
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
		l.s.log.Warn("other commands cannot find out where the disk is served: its lock file cannot be written, and there is no place in memory",
			"disk", l.name, "err", errors.Join(err, kerr))
	}
	return nil
}

// write puts v over the content of the lock file, which becomes no shorter: on most file systems that takes no room.
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
	// Spaces and an end of line belong to no value of JSON: readers of all versions take what is before them.
	if pad := max(servingSize, min(int(size), maxServing)) - len(data) - 1; pad > 0 {
		data = append(data, bytes.Repeat([]byte{' '}, pad)...)
	}
	data = append(data, '\n')
	_, err = l.file.WriteAt(data, 0)
	return err
}

// Unlock gives the disk back.
func (l *Lock) Unlock() error {
	if l.file == nil {
		return nil
	}
	l.removeMemory()
	// What remains written there is not believed once another process has the lock.
	_ = l.write(Serving{})
	l.s.diskLocks.remove(l)
	return l.file.Close()
}

// lockSet are the locks of disks that a Store has.
type lockSet struct {
	mu  sync.Mutex
	all map[*Lock]bool
}

func (h *lockSet) add(l *Lock) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.all == nil {
		h.all = map[*Lock]bool{}
	}
	h.all[l] = true
}

func (h *lockSet) remove(l *Lock) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.all, l)
}

// find is the lock of a disk, or nil.
func (h *lockSet) find(name string) *Lock {
	h.mu.Lock()
	defer h.mu.Unlock()
	for l := range h.all {
		if l.name == name {
			return l
		}
	}
	return nil
}
