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
	"cowblk/cow/vfs"
	"cowblk/cow/way"
)

// Serving says who has a disk open: the content of the disk's lock file, as far as the process that holds the lock has
// written it.
type Serving struct {
	PID     int    `json:"pid"`               // 0: not known
	Control string `json:"control,omitempty"` // path of the control socket; empty: none, or not believed
	// Socket is the path of the vhost-user socket; empty: not serving, only using the disk. Of a store that is not
	// Trusted it is only for showing.
	Socket string `json:"socket,omitempty"`
}

// String says it for a person: "served by process 42 on /run/cowblk/vm1.sock".
func (v Serving) String() string {
	who := "another process"
	if v.PID != 0 {
		who = fmt.Sprintf("process %d", v.PID)
	}
	if v.Socket == "" {
		return "open in " + who
	}
	return fmt.Sprintf("served by %s on %s", who, PathText(v.Socket))
}

// maxServing bounds what is read of a lock file, in bytes.
const maxServing = 1 << 16

// Serving reports who has the disk open, in this or another process. False: nobody, or no such disk. Whether a disk is
// open that this process may not look at is not known; see ServingError. Of a store that is not Trusted there is no
// Control.
func (s *Store) Serving(name string) (*Serving, bool) {
	v, _ := s.ServingError(name)
	return v, v != nil
}

// ServingError is Serving that also says why it cannot be told who has the disk open: no permission, an input or output
// error. nil, nil: nobody, or no such disk.
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
		return nil, fmt.Errorf("disk %q: whether a process has it open: %w", name, err)
	}
	defer f.Close()
	switch err := f.Lock(false); {
	case err == nil:
		return nil, nil
	case !errors.Is(err, vfs.ErrLocked):
		return nil, fmt.Errorf("disk %q: whether a process has it open: %w", name, err)
	}
	v, confirmed := s.readServing(f)
	if !confirmed && f.Lock(false) == nil {
		return nil, nil // it has just been given up
	}
	if s.trustedPath() != nil {
		// Whoever can write that file can name any socket: one of another store's process, which would do there what it is
		// told, or one of his own.
		v.Control = ""
	}
	return &v, nil
}

// servingNow is the Serving of a disk whose lock was not to be had a moment ago; the zero value if nothing is known.
func (s *Store) servingNow(name string) Serving {
	if v, ok := s.Serving(name); ok {
		return *v
	}
	return Serving{}
}

// readServing is what is known of the process that holds the lock of f. The content of the file may be that of an earlier
// holder, which was killed; it is believed of the process alone that has written it. sure: it does hold the lock.
func (s *Store) readServing(f vfs.File) (v Serving, confirmed bool) {
	id, err := f.Identity()
	if err != nil {
		return v, false
	}
	var holders vfs.FlockHolders
	for range holderTries {
		v = Serving{}
		// What cannot be read is not what a process has written.
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
			// Nothing is known of locks: a confined process, a file system of tests.
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
		return Serving{}, true // the file system does not let its locks be told apart
	}
	v.PID = 0 // a process of another PID namespace, where its number is another
	return v, false
}

// holderTries is how often the lock file and the kernel are asked, for the holder may just be writing there, and the
// kernel's list may miss a lock while others change.
const holderTries = 3

// alive reports whether there is a process with this number.
func alive(pid int) bool { return pid > 0 && !errors.Is(unix.Kill(pid, 0), unix.ESRCH) }

func flockHolders(fsys vfs.FS) (vfs.FlockHolders, error) {
	lfs, ok := fsys.(vfs.HostFS)
	if !ok {
		return nil, errors.ErrUnsupported
	}
	return lfs.FlockHolders()
}

// holderCache is what was last read of the kernel's locks. A list of a thousand disks reads them once: that a process
// held a lock a moment ago, and says itself that it does, is as true as any answer.
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

// inUse says who has a disk open.
func (s *Store) inUse(name string) error {
	v := s.servingNow(name)
	if v == (Serving{}) { // somebody who only reads the lock file
		v.PID = s.lockHolder(s.path(disksDir, name, lockFile))
	}
	err := fmt.Errorf("disk %q is %w: %s", name, ErrInUse, v)
	switch {
	case v.Control != "":
		return fmt.Errorf("%w\nstop it first: %s", err, s.command("stop", name))
	case v.PID != 0 && v.Socket == "":
		return fmt.Errorf("%w%s\nwait until that process has ended", err, describeProcess(v.PID))
	case v.Socket != "":
		return err // --blk-file and the like: it has no control socket
	}
	return fmt.Errorf("%w\nwait until it has ended", err)
}

// describeProcess tells a person more about a process: ` ("qemu-img", user alice)`; empty if nothing is to be had.
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

// lockHolder is the process that holds a lock file, or one of several that do; 0: not known.
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

// storeHolder names the process that holds the store's lock, as far as that is known.
func (s *Store) storeHolder() string {
	if pid := s.lockHolder(s.path(lockFile)); pid > 0 {
		return fmt.Sprintf("process %d%s", pid, describeProcess(pid))
	}
	return "another process"
}

// Unclean reports whether a disk that nobody has open was not closed in order: what its guest has not flushed is not
// durable. False where that cannot be told.
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
	_, open := s.Serving(name) // the next process
	return !open
}
