package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"cowblk/cow/vfs"
)

// Modes of the store's files. flock(2) only needs an open file, so a user that can open a lock file
// or a map can block a disk: only the owner may. Other users can enter, but not list, the store's
// directory and the run directory: QEMU runs as another user and connects to a socket there.
const (
	enterPerm fs.FileMode = 0o711 // the store's directory, the run directory
	dirPerm   fs.FileMode = 0o700
	filePerm  fs.FileMode = 0o600
)

// locked runs f with the store's lock. Processes get the lock in the order of their requests.
// ErrBusy after Options.LockTimeout; it returns early when ctx is done.
func (s *Store) locked(ctx context.Context, f func() error) error {
	lock, err := s.lockStore(ctx)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := f(); err != nil {
		return err
	}
	s.fillReserveOnce()
	return nil
}

// lockStore returns the open and locked lock file of the store. Close releases the lock.
func (s *Store) lockStore(ctx context.Context) (vfs.File, error) {
	if err := s.Trusted(); err != nil {
		return nil, err
	}
	lock, err := s.openStoreLock()
	if errors.Is(err, ErrInvalid) {
		return nil, err // it names the store
	}
	if err != nil {
		return nil, fmt.Errorf("store %s: %w", s.dir, err)
	}
	s.restrict(lock)
	err = lock.Lock(true)
	if err == nil {
		return lock, nil
	}
	if errors.Is(err, vfs.ErrLocked) {
		timer := time.NewTimer(s.lockTimeout)
		defer timer.Stop()
		if w, ok := lock.(vfs.LockWaiter); ok {
			lock, err = s.waiters.wait(ctx, w, timer.C)
		} else {
			err = poll(ctx, lock, timer.C)
		}
	}
	switch {
	case err == nil:
		return lock, nil
	case errors.Is(err, errLockTimeout):
		err = fmt.Errorf("%w: %s has been changing it for more than %s", ErrBusy, s.storeHolder(),
			s.lockTimeout)
	}
	if lock != nil {
		lock.Close()
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	return nil, fmt.Errorf("store %s: %w", s.dir, err)
}

// openStoreLock opens the lock file. It creates the file and the store's directory if they are
// missing. The directory must be trusted.
func (s *Store) openStoreLock() (vfs.File, error) {
	path := s.path(lockFile)
	f, err := s.fs.OpenFile(path, os.O_RDWR|unix.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) {
		if err := s.makeDir(s.dir); err != nil {
			return nil, err
		}
		if err := s.trustedPath(); err != nil { // another user may have created it meanwhile
			return nil, err
		}
		f, err = s.fs.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, filePerm)
		if err == nil {
			// Optional, see recognize. Durable before the store has anything else: a power cut must
			// not leave a directory in tmp/ without it.
			_, _ = f.WriteAt([]byte(lockMagic), 0)
			_ = f.Datasync()
			_ = s.fs.SyncDir(s.dir)
		}
	}
	if err == nil {
		s.recognized.Store(true)
	}
	return f, err
}

// makeDir creates the store's directory or the run directory. Missing parents are readable by other
// users.
func (s *Store) makeDir(dir string) error {
	if err := s.fs.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	return s.fs.MkdirAll(dir, enterPerm)
}

// restrict removes the access of other users that earlier versions granted, once for each Store, by
// file descriptor. It skips what belongs to another user.
func (s *Store) restrict(lock vfs.File) {
	s.restrictOnce.Do(func() {
		if f, ok := lock.(vfs.Restricter); ok {
			if err := f.Restrict(filePerm); err != nil {
				s.log.Warn("other users may open the store's lock", "err", err)
			}
		}
		s.restrictDir(s.dir, ".", enterPerm)
		for _, dir := range []string{imagesDir, layersDir, disksDir, tmpDir, reserveDir, indexDir} {
			s.restrictDir(s.dir, dir, dirPerm)
		}
	})
}

// prepare restricts modes and fills the reserve for a process that only serves disks: other
// processes do that with their first change. It needs no lock.
func (s *Store) prepare() {
	if s.Trusted() != nil {
		return // nothing in it is opened either
	}
	if lock, err := s.openStoreLock(); err == nil {
		s.restrict(lock)
		lock.Close()
	}
	s.fillReserveOnce()
}

// restrictDir restricts the mode of a directory in dir.
func (s *Store) restrictDir(dir, name string, perm fs.FileMode) {
	lfs, ok := s.fs.(vfs.HostFS)
	if !ok {
		return
	}
	if err := lfs.RestrictDir(dir, name, perm); err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.log.Warn("other users may open files of the store, and so hold its locks", "err", err)
	}
}

// lockPoll is the interval of attempts where a wait in the kernel is unavailable or must be
// interruptible.
const lockPoll = 10 * time.Millisecond

// errLockTimeout is the timeout of a wait for a lock.
var errLockTimeout = errors.New("the lock was not to be had in time")

func poll(ctx context.Context, f vfs.File, timeout <-chan time.Time) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-timeout:
			return errLockTimeout
		case <-time.After(lockPoll):
		}
		if err := f.Lock(true); !errors.Is(err, vfs.ErrLocked) {
			return err
		}
	}
}

// waiters are waits for the store's lock in the kernel, which cannot be interrupted. An abandoned
// wait is passed to the next caller, so there are never more waits than concurrent callers.
type waiters struct {
	mu        sync.Mutex
	abandoned []*waiter
}

// waiter is one wait: a goroutine that ends with it.
type waiter struct {
	file vfs.LockWaiter
	done chan error // buffered: one result
}

// wait returns the locked file. It may be another file than f; f is closed then. After an error the
// result is f, which the caller closes, or nil.
func (ws *waiters) wait(ctx context.Context, f vfs.LockWaiter, timeout <-chan time.Time) (vfs.File,
	error) {
	w := ws.take(f)
	if w.file != f {
		f.Close()
	}
	select {
	case err := <-w.done:
		return w.file, err
	case <-ctx.Done():
		ws.abandon(w)
		return nil, ctx.Err()
	case <-timeout:
		ws.abandon(w)
		return nil, errLockTimeout
	}
}

// take returns an abandoned wait, which is earlier in the queue, or starts one.
func (ws *waiters) take(f vfs.LockWaiter) *waiter {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	if n := len(ws.abandoned); n > 0 {
		w := ws.abandoned[0]
		ws.abandoned = ws.abandoned[1:]
		return w
	}
	w := &waiter{file: f, done: make(chan error, 1)}
	go func() {
		err := w.file.LockWait()
		ws.mu.Lock()
		defer ws.mu.Unlock()
		for i, a := range ws.abandoned {
			if a == w {
				ws.abandoned = append(ws.abandoned[:i:i], ws.abandoned[i+1:]...)
				w.file.Close()
				return
			}
		}
		w.done <- err
	}()
	return w
}

// abandon leaves a wait to the next caller. If it has just got the lock, abandon releases the lock.
func (ws *waiters) abandon(w *waiter) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	select {
	case <-w.done:
		w.file.Close()
	default:
		ws.abandoned = append(ws.abandoned, w)
	}
}
