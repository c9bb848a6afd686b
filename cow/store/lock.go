package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
	"time"

	"cowblk/cow/vfs"
)

// Serving is the content of a disk's lock file: who has the disk open.
type Serving struct {
	PID     int    `json:"pid"`
	Control string `json:"control,omitempty"` // path of the control socket; empty: none
	Socket  string `json:"socket,omitempty"`  // path of the vhost-user socket; empty: not serving, only using the disk
}

// String says it for a person: "served by process 42 on /run/cowblk/vm1.sock".
func (v Serving) String() string {
	switch {
	case v.PID == 0:
		return "open in another process"
	case v.Socket == "":
		return fmt.Sprintf("open in process %d", v.PID)
	}
	return fmt.Sprintf("served by process %d on %s", v.PID, v.Socket)
}

// Lock is the right to open one disk. It ends with Unlock or with the process.
type Lock struct {
	file vfs.File
	name string
}

// lockTries bounds the wait for a disk's lock: Serving takes the lock for a moment to see whether it is free, which
// must not make an opener fail.
const lockTries = 30

// lockWait is how long a process that is to serve a disk waits for one that only uses it: a check, a promotion of a
// stopped disk. Its supervisor would give it up after a few refusals.
const lockWait = time.Minute

// LockDisk takes the disk's lock. ErrInUse names who holds it; ErrNotFound.
func (s *Store) LockDisk(name string) (*Lock, error) {
	return s.lockDisk(context.Background(), name, 0)
}

// lockDisk is LockDisk that waits for as long as the holder serves nobody, wait at most.
func (s *Store) lockDisk(ctx context.Context, name string, wait time.Duration) (*Lock, error) {
	if err := CheckName("disk", name); err != nil {
		return nil, err
	}
	path := s.path(disksDir, name, lockFile)
	said := false
	for start, try := time.Now(), 0; ; try++ {
		if try >= lockTries {
			v := s.readServing(name)
			if v.Socket != "" || time.Since(start) >= wait {
				break
			}
			if !said {
				said = true
				s.log.Info("waiting for a process that has the disk open", "disk", name, "pid", v.PID, "at_most", wait)
			}
		}
		f, err := s.fs.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, s.notFound("disk", name)
		}
		if err != nil {
			return nil, fmt.Errorf("disk %q: %w", name, err)
		}
		err = f.Lock(true)
		if err == nil && s.sameFile(f, path) {
			l := &Lock{file: f, name: name}
			if err := l.SetServing(Serving{PID: os.Getpid()}); err != nil {
				f.Close()
				return nil, err
			}
			return l, nil
		}
		f.Close()
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

func (s *Store) inUse(name string) error {
	v := s.readServing(name)
	err := fmt.Errorf("disk %q is %w: %s", name, ErrInUse, v)
	switch {
	case v.Control != "":
		err = fmt.Errorf("%w\nstop it first: %s", err, s.command("stop", name))
	case v.PID != 0 && v.Socket == "":
		err = fmt.Errorf("%w\ntry again when that has ended, or stop it: %s", err, s.command("stop", name))
	}
	return err
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

// SetServing records who serves the disk, for other processes to find.
func (l *Lock) SetServing(v Serving) error {
	data, err := json.Marshal(v)
	if err == nil {
		if err = l.file.Truncate(0); err == nil {
			_, err = l.file.WriteAt(append(data, '\n'), 0)
		}
	}
	if err != nil {
		return fmt.Errorf("disk %q: lock file: %w", l.name, err)
	}
	return nil
}

// Unlock gives the disk back.
func (l *Lock) Unlock() error {
	// What remains written there is not believed once the lock is free: see Serving.
	_ = l.file.Truncate(0)
	return l.file.Close()
}

// Serving reports who has the disk open, in this or another process. False: nobody, or no such disk.
func (s *Store) Serving(name string) (*Serving, bool) {
	if CheckName("disk", name) != nil {
		return nil, false
	}
	f, err := s.fs.OpenFile(s.path(disksDir, name, lockFile), os.O_RDONLY, 0)
	if err != nil {
		return nil, false
	}
	defer f.Close()
	if err := f.Lock(false); !errors.Is(err, vfs.ErrLocked) {
		return nil, false
	}
	v := s.readServing(name)
	return &v, true
}

// readServing is what the lock file says; the zero value if it says nothing (its owner is just writing it).
func (s *Store) readServing(name string) Serving {
	var v Serving
	data, err := s.fs.ReadFile(s.path(disksDir, name, lockFile))
	if err != nil || json.Unmarshal(data, &v) != nil {
		return Serving{}
	}
	return v
}
