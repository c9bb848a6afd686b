package vfs

import (
	"bufio"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// LockWaiter is a File that can wait for its lock in the kernel, which grants exclusive locks in
// the order of the requests.
type LockWaiter interface {
	File
	// LockWait takes the exclusive lock and waits for it without limit. The wait cannot be
	// interrupted: a caller that must be able to give up waits in a goroutine. Close must not be
	// called meanwhile.
	LockWait() error
}

// Restricter is a File whose mode can be restricted.
type Restricter interface {
	File
	// Restrict removes the bits from the file's mode that are not in perm. A file that its group
	// may write to was shared with the group on purpose: the group keeps its rights. A file of
	// another user is not changed.
	Restrict(perm fs.FileMode) error
}

// HostFS is an FS that knows other processes and users, and the free space (SpaceFS).
type HostFS interface {
	SpaceFS
	// FlockHolders returns the processes that hold locks of whole files (flock). Processes of other
	// PID namespaces are missing, and the kernel may leave a process out while others come and go.
	FlockHolders() (FlockHolders, error)
	// RestrictDir is Restricter.Restrict for the directory name below dir. A symbolic link or a
	// file in its place is not changed.
	RestrictDir(dir, name string, perm fs.FileMode) error
	// Writable returns nil if this process may create files in the directory dir, else the reason:
	// fs.ErrPermission, unix.EROFS, fs.ErrNotExist.
	Writable(dir string) error
}

// SpaceFS is an FS that knows the free space.
type SpaceFS interface {
	FS
	// Free returns the space on the file system of dir, in bytes, that this user may use.
	Free(dir string) (int64, error)
}

// FlockHolders are the locks of whole files that the kernel lists.
type FlockHolders map[uint64][]FlockHolder // by inode number

// FlockHolder is one lock of a whole file.
type FlockHolder struct {
	PID       int
	Exclusive bool
	dev       uint64
}

// Held reports whether the process holds the exclusive lock of the file. On file systems that give
// their files another device number than the kernel lists (btrfs, overlay), inode and process alone
// decide.
func (h FlockHolders) Held(id Identity, pid int) bool {
	for _, l := range h[id.Inode] {
		if l.PID == pid && l.Exclusive {
			return true
		}
	}
	return false
}

// Locked reports whether a process holds the exclusive lock of the file, or of a file with the same
// inode number on another file system: see Held.
func (h FlockHolders) Locked(id Identity) bool {
	for _, l := range h[id.Inode] {
		if l.Exclusive {
			return true
		}
	}
	return false
}

// Holder returns a process that holds a lock of the file, preferably the exclusive one; 0: not
// known.
func (h FlockHolders) Holder(id Identity) (pid int, exclusive bool) {
	for _, l := range h[id.Inode] {
		if l.dev == id.Dev {
			if pid = l.PID; l.Exclusive {
				return pid, true
			}
		}
	}
	return pid, false
}

var (
	_ LockWaiter = (*osFile)(nil)
	_ Restricter = (*osFile)(nil)
	_ HostFS     = OS{}
)

// LockWait implements LockWaiter.
func (f *osFile) LockWait() error {
	f.flocked.Store(true)
	if err := ignoringEINTR(func() error { return unix.Flock(f.fd, unix.LOCK_EX) }); err != nil {
		return f.fail("lock", err)
	}
	return nil
}

// Restrict implements Restricter.
func (f *osFile) Restrict(perm fs.FileMode) error {
	if err := restrict(f.fd, perm); err != nil {
		return f.fail("chmod", err)
	}
	return nil
}

// restrict changes the mode of an open file: no path is looked up, so no link is followed.
func restrict(fd int, perm fs.FileMode) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	uid := os.Geteuid()
	if uid != 0 && int(st.Uid) != uid {
		return nil
	}
	keep := uint32(perm.Perm())
	if st.Mode&0o020 != 0 {
		keep |= 0o070
	}
	if st.Mode&0o777&^keep == 0 {
		return nil
	}
	return unix.Fchmod(fd, st.Mode&0o7777&(keep|0o7000))
}

// FlockHolders implements HostFS; see proc_locks(5).
func (OS) FlockHolders() (FlockHolders, error) {
	f, err := os.Open("/proc/locks")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	all := FlockHolders{}
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		// "1: FLOCK ADVISORY WRITE 4711 08:01:131078 0 EOF"; the line of a waiter has "->" after
		// the number.
		var major, minor uint32
		var inode uint64
		var pid int
		fields := strings.Fields(lines.Text())
		if len(fields) < 6 || fields[1] != "FLOCK" {
			continue
		}
		if _, err := fmt.Sscanf(fields[4]+" "+fields[5], "%d %x:%x:%d", &pid, &major, &minor,
			&inode); err != nil {
			continue
		}
		all[inode] = append(all[inode], FlockHolder{PID: pid, Exclusive: fields[3] == "WRITE",
			dev: unix.Mkdev(major, minor)})
	}
	return all, lines.Err()
}

// RestrictDir implements HostFS.
func (OS) RestrictDir(dir, name string, perm fs.FileMode) error {
	const flags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC
	d, err := retryOpen(dir, flags, 0)
	if err != nil {
		return &fs.PathError{Op: "open", Path: dir, Err: err}
	}
	defer unix.Close(d)
	fd, err := unix.Openat(d, name, flags|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	switch err {
	case nil:
	case unix.ELOOP, unix.ENOTDIR:
		return nil
	default:
		return &fs.PathError{Op: "open", Path: dir + "/" + name, Err: err}
	}
	defer unix.Close(fd)
	if err := restrict(fd, perm); err != nil {
		return &fs.PathError{Op: "chmod", Path: dir + "/" + name, Err: err}
	}
	return nil
}

// Writable implements HostFS.
func (OS) Writable(dir string) error {
	if err := unix.Access(dir, unix.W_OK|unix.X_OK); err != nil {
		return &fs.PathError{Op: "access", Path: dir, Err: err}
	}
	return nil
}

// Free implements SpaceFS.
func (OS) Free(dir string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, &fs.PathError{Op: "statfs", Path: dir, Err: err}
	}
	return int64(st.Bavail) * st.Bsize, nil
}
