package control

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ErrInUse says that another process listens on the socket.
var ErrInUse = errors.New("socket is in use")

// maxPath is what a sockaddr_un holds, in bytes, without the terminating zero.
const maxPath = len(unix.RawSockaddrUnix{}.Path) - 1

// Listener is a UNIX socket in the file system that only its owner, and the members of
// one group if there is one, can connect to.
type Listener struct {
	*net.UnixListener
	path string
	dev  uint64 // with ino: the file that we made, so that no other is removed
	ino  uint64
	keep atomic.Bool // see Keep
}

// ListenUnix makes the socket path, mode 0600, or 0660 with the group (name or number)
// when that is not empty. At no moment has it a wider mode, whatever the umask. A
// socket file that nobody listens on is replaced; one that answers gives ErrInUse, and
// a file of another kind is left alone.
func ListenUnix(path, group string) (*Listener, error) {
	if len(path) > maxPath {
		return nil, fmt.Errorf("socket %s: the path has %d bytes, at most %d are possible: choose a shorter one", path, len(path), maxPath)
	}
	gid := -1
	if group != "" {
		var err error
		if gid, err = groupID(group); err != nil {
			return nil, fmt.Errorf("socket %s: %w", path, err)
		}
	}
	// Two starting processes must not both take the old file for stale and the second
	// remove what the first has just made: the directory's lock makes check, removal
	// and bind one step.
	dir, err := lockDir(filepath.Dir(path))
	if err != nil {
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	defer dir.Close()
	if err := removeStale(path); err != nil {
		return nil, err
	}
	// Linux creates the file with the mode of the socket's own inode (unix_bind_bsd),
	// less the umask: setting that before bind needs no change of the umask, which is
	// the whole process's.
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		if cerr := c.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), 0o600) }); cerr != nil {
			return cerr
		}
		return err
	}}
	nl, err := lc.Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	l := &Listener{UnixListener: nl.(*net.UnixListener), path: path}
	l.SetUnlinkOnClose(false)
	if err := l.adopt(gid); err != nil {
		l.Close()
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	return l, nil
}

// adopt notes which file is ours and gives it its final mode.
func (l *Listener) adopt(gid int) error {
	var st unix.Stat_t
	if err := unix.Lstat(l.path, &st); err != nil {
		return &fs.PathError{Op: "lstat", Path: l.path, Err: err}
	}
	l.dev, l.ino = st.Dev, st.Ino
	mode := fs.FileMode(0o600)
	if gid >= 0 {
		if err := os.Lchown(l.path, -1, gid); err != nil {
			return err
		}
		mode = 0o660
	}
	return os.Chmod(l.path, mode)
}

// Keep says whether Close is to leave the socket file to others: another process listens
// on the same socket, or will.
func (l *Listener) Keep(on bool) { l.keep.Store(on) }

// Kept reports whether Close leaves the socket file.
func (l *Listener) Kept() bool { return l.keep.Load() }

// Path is where the socket's file lies.
func (l *Listener) Path() string { return l.path }

// Close stops listening and removes the socket file, unless another took its place or
// Keep forbids it.
func (l *Listener) Close() error {
	var st unix.Stat_t
	if l.keep.Load() {
		return l.UnixListener.Close()
	}
	if err := unix.Lstat(l.path, &st); err == nil && st.Dev == l.dev && st.Ino == l.ino {
		os.Remove(l.path)
	}
	return l.UnixListener.Close()
}

// removeStale removes a socket file that refuses connections.
func removeStale(path string) error {
	fi, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("socket %s: %w", path, err)
	}
	if fi.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("socket %s: expected a socket or nothing there, found a file with mode %s: remove it or choose another path", path, fi.Mode())
	}
	// A listener with a full backlog makes connect wait, and that is an answer too.
	conn, err := net.DialTimeout("unix", path, time.Second)
	if err == nil {
		conn.Close()
	}
	switch {
	case errors.Is(err, unix.ECONNREFUSED):
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("socket %s: nobody listens on it, but it cannot be replaced: %w", path, err)
		}
		return nil
	case errors.Is(err, fs.ErrNotExist):
		return nil
	default:
		return fmt.Errorf("%s: %w by another process: stop that one or choose another path", path, ErrInUse)
	}
}

// lockDir opens the directory under an exclusive flock, which ends with Close.
func lockDir(dir string) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		f.Close()
		return nil, &fs.PathError{Op: "flock", Path: dir, Err: err}
	}
	return f, nil
}

// groupID resolves a group's name or number.
func groupID(group string) (int, error) {
	if n, err := strconv.ParseUint(group, 10, 31); err == nil {
		return int(n), nil
	}
	g, err := user.LookupGroup(group)
	if err != nil {
		return 0, fmt.Errorf("group %q: %w", group, err)
	}
	return strconv.Atoi(g.Gid)
}
