package store

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"cowblk/cow/layer"
	"cowblk/cow/shell"
	"cowblk/cow/vfs"
	"cowblk/cow/way"
)

// Serving says which process has a disk open. It is the content of the disk's lock file.
type Serving struct {
	PID     int    `json:"pid"`               // 0: unknown
	Control string `json:"control,omitempty"` // path of the control socket; empty: none, or not trusted
	// Socket is the path of the vhost-user socket; empty: the process does not serve the disk. If
	// the store is not Trusted it must only be displayed.
	Socket string `json:"socket,omitempty"`
}

// String describes it: "served by process 42 on /run/cowblk/vm1.sock".
func (v Serving) String() string {
	who := "another process"
	if v.PID != 0 {
		who = fmt.Sprintf("process %d", v.PID)
	}
	if v.Socket == "" {
		return "open in " + who
	}
	return fmt.Sprintf("served by %s on %s", who, shell.Text(v.Socket))
}

// maxServing limits the bytes read from a lock file.
const maxServing = 1 << 16

// Serving reports which process has the disk open. False: none, no such disk, or unknown because of
// an error; see ServingError. Control is empty if the store is not Trusted.
func (s *Store) Serving(name string) (*Serving, bool) {
	v, _ := s.ServingError(name)
	return v, v != nil
}

// ServingError is Serving that returns the error: no permission, I/O error. nil, nil: no process
// has the disk open, or there is no such disk.
func (s *Store) ServingError(name string) (*Serving, error) {
	if CheckName("disk", name) != nil {
		return nil, nil
	}
	f, err := s.fs.OpenFile(s.path(disksDir, name, lockFile), os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		if t := s.notDirectory(KindDisk, name); t != nil {
			return nil, t.Err()
		}
	}
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err == nil && s.trustedPath() == nil {
		if err = s.trustedDisk(name); err != nil {
			f.Close()
			return nil, err
		}
	}
	if errors.Is(err, unix.ELOOP) {
		return nil, linkedLock(s.path(disksDir, name, lockFile))
	}
	if err != nil {
		return nil, fmt.Errorf("disk %q: cannot determine whether a process has it open: %w", name,
			err)
	}
	defer f.Close()
	switch err := f.Lock(false); {
	case err == nil:
		return nil, nil
	case !errors.Is(err, vfs.ErrLocked):
		return nil, fmt.Errorf("disk %q: cannot determine whether a process has it open: %w", name,
			err)
	}
	v, confirmed := s.readServing(f)
	if !confirmed && f.Lock(false) == nil {
		return nil, nil // just released
	}
	if s.trustedPath() != nil {
		// A user that can write the file can name any socket, such as that of another store's
		// process.
		v.Control = ""
	}
	return &v, nil
}

// servingNow returns the Serving of a disk whose lock was just taken; zero if unknown.
func (s *Store) servingNow(name string) Serving {
	if v, ok := s.Serving(name); ok {
		return *v
	}
	return Serving{}
}

// readServing describes the process that holds the lock of f. The content of the file may be that
// of a former holder that was killed: it is used only if its process holds the lock now. confirmed:
// the process does hold the lock.
func (s *Store) readServing(f vfs.File) (v Serving, confirmed bool) {
	id, err := f.Identity()
	if err != nil {
		return v, false
	}
	var holders vfs.FlockHolders
	for range holderTries {
		v = Serving{}
		// Unreadable content was not written by a holder.
		if text, err := io.ReadAll(io.NewSectionReader(f, 0, maxServing)); err == nil {
			v, _ = decodeServing(text)
		}
		if s.holders.holds(s.fs, id, v.PID) {
			return v, true
		}
		if recorded, ok := s.readMemory(id); ok && s.holders.holds(s.fs, id, recorded.PID) {
			return recorded, true
		}
		if holders, err = flockHolders(s.fs); err != nil {
			// The list of locks is unavailable: a sandboxed process, or a file system in a test.
			if _, real := s.fs.(vfs.HostFS); real && !alive(v.PID) {
				v.PID = 0
			}
			return v, false
		}
	}
	if pid, exclusive := holders.Holder(id); exclusive {
		return Serving{PID: pid}, true
	}
	if holders.Locked(id) && !alive(v.PID) {
		return Serving{}, true // the file system does not report the locks of single files
	}
	v.PID = 0 // the PID is from another PID namespace
	return v, false
}

// holderTries limits how often the lock file and the kernel's list are read: the holder may be
// writing the file, and the list may miss a lock while others change.
const holderTries = 3

// alive reports whether the process exists.
func alive(pid int) bool { return pid > 0 && !errors.Is(unix.Kill(pid, 0), unix.ESRCH) }

func flockHolders(fsys vfs.FS) (vfs.FlockHolders, error) {
	lfs, ok := fsys.(vfs.HostFS)
	if !ok {
		return nil, errors.ErrUnsupported
	}
	return lfs.FlockHolders()
}

// holderCache caches the kernel's list of locks, so that a listing of a thousand disks reads it
// once. A process that held the lock a moment ago and says that it does is a valid answer.
type holderCache struct {
	mu  sync.Mutex
	all vfs.FlockHolders
}

func (c *holderCache) holds(fsys vfs.FS, id vfs.Identity, pid int) bool {
	if pid == 0 {
		return false
	}
	c.mu.Lock()
	all := c.all
	c.mu.Unlock()
	if all.Held(id, pid) && alive(pid) {
		return true
	}
	all, err := flockHolders(fsys)
	if err != nil {
		return false
	}
	c.mu.Lock()
	c.all = all
	c.mu.Unlock()
	return all.Held(id, pid)
}

// inUse returns the error that names the process which has a disk open.
func (s *Store) inUse(name string) error {
	v := s.servingNow(name)
	if v == (Serving{}) { // a process that only reads the lock file
		v.PID = s.lockHolder(s.path(disksDir, name, lockFile))
	}
	err := fmt.Errorf("disk %q is %w: %s", name, ErrInUse, v)
	switch {
	case v.Control != "":
		return fmt.Errorf("%w\nstop it first: %s", err, s.command("stop", name))
	case v.PID != 0 && v.Socket == "":
		return fmt.Errorf("%w%s\nwait until that process has ended", err, describeProcess(v.PID))
	case v.Socket != "":
		return err // it has no control socket (--blk-file, for example)
	}
	return fmt.Errorf("%w\nwait until it has ended", err)
}

// describeProcess returns the name and user of a process, ` ("qemu-img", user alice)`; empty if
// unknown.
func describeProcess(pid int) string {
	name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err != nil {
		return ""
	}
	text := strconv.Quote(strings.TrimSpace(string(name)))
	var st unix.Stat_t
	if err := unix.Stat(fmt.Sprintf("/proc/%d", pid), &st); err == nil {
		text += ", user " + way.UserName(st.Uid)
	}
	return " (" + text + ")"
}

// lockHolder returns the PID of a process that holds a lock file; 0: unknown.
func (s *Store) lockHolder(path string) int {
	f, err := s.fs.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return 0
	}
	defer f.Close()
	id, err := f.Identity()
	if err != nil {
		return 0
	}
	all, err := flockHolders(s.fs)
	if err != nil {
		return 0
	}
	pid, _ := all.Holder(id)
	return pid
}

// storeHolder describes the process that holds the store's lock.
func (s *Store) storeHolder() string {
	if pid := s.lockHolder(s.path(lockFile)); pid > 0 {
		return fmt.Sprintf("process %d%s", pid, describeProcess(pid))
	}
	return "another process"
}

// Unclean reports whether a disk that nobody has open was not closed cleanly: its guest's unflushed
// writes are not durable. False if unknown.
func (s *Store) Unclean(name string) bool {
	m, err := s.Disk(name)
	if err != nil || len(m.Layers) == 0 {
		return false
	}
	head := m.Head()
	h, err := layer.ReadHeader(s.fs, s.paths(head).Map)
	if err != nil || h.State != layer.Head || h.Clean {
		return false
	}
	_, open := s.Serving(name) // by the next process
	return !open
}

// SyncFailed reports whether a process has failed to sync the data of a disk's head: a plain open
// drops what it has not flushed.
func (s *Store) SyncFailed(name string) bool {
	m, err := s.Disk(name)
	return err == nil && len(m.Layers) > 0 && layer.SyncFailed(s.fs, s.paths(m.Head()))
}
