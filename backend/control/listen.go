package control

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/user"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ErrInUse says that another process listens on the socket.
var ErrInUse = errors.New("socket is in use")

// maxPath is the capacity of a sockaddr_un in bytes, without the terminating zero.
const maxPath = len(unix.RawSockaddrUnix{}.Path) - 1

// privateDirSocket is the name of a socket in a privateDir.
const privateDirSocket = "s"

// Listener is a UNIX socket in the file system that only its owner and the members of an optional
// group can connect to.
type Listener struct {
	*net.UnixListener
	entry    *dirEntry
	dev      uint64 // with ino: the file to be removed by Close
	ino      uint64
	keepFile atomic.Bool // see SetKeepFile
	// checkPeers: the socket was adopted, and its backlog may have clients that the former process
	// allowed. A Server accepts only the owner and members of gid (-1: no group).
	checkPeers bool
	gid        int
}

// ListenUnix makes a socket at path with mode 0600, or 0660 with group (name or number) if that is
// not empty. The mode is never wider, whatever the umask. A stale socket file is replaced. Errors:
// ErrInUse if a process listens on it; an error if it is another kind of file.
//
// The directory may belong to another user, who changes it meanwhile: ListenUnix follows no
// symbolic link of another user (ErrSymlink), and changes mode and group of its own socket only.
func ListenUnix(path, group string) (*Listener, error) {
	if err := CheckPath(path); err != nil {
		return nil, err
	}
	gid, err := groupOrNone(group)
	if err != nil {
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	at, err := openDirEntry(path)
	if err != nil {
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	l, err := listenAt(at, gid)
	if err != nil {
		at.dir.Close()
		return nil, err
	}
	return l, nil
}

// listenAt makes the socket. The listener owns at.
func listenAt(at *dirEntry, gid int) (*Listener, error) {
	// Without the directory's lock, two starting processes could both find the stale file, and the
	// second would remove the socket of the first. The lock makes check, removal and bind one step.
	defer lockDir(at)()
	if err := removeStale(at); err != nil {
		return nil, err
	}
	l, err := bind(at, gid)
	if err != nil {
		return nil, fmt.Errorf("socket %s: %w", at.path, err)
	}
	return l, nil
}

// bind makes the socket's file and sets its group and mode. If others can change the directory, it
// does so in a privateDir first.
func bind(at *dirEntry, gid int) (*Listener, error) {
	dir, name, address := at.dir, at.name, at.path
	var private *privateDir
	if !at.private {
		var err error
		if private, err = at.newPrivateDir(); err != nil {
			return nil, err
		}
		defer private.close()
		dir, name, address = private.dir, privateDirSocket, procPath(private.dir, privateDirSocket)
	}
	// Linux creates the file with the mode of the socket's inode (unix_bind_bsd) less the umask.
	// Setting it before bind avoids changing the umask, which belongs to the whole process.
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		if cerr := c.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), 0o600) }); cerr != nil {
			return cerr
		}
		return err
	}}
	nl, err := lc.Listen(context.Background(), "unix", address)
	if err != nil {
		return nil, err
	}
	l := &Listener{UnixListener: nl.(*net.UnixListener), entry: at}
	l.SetUnlinkOnClose(false)
	file, err := openEntry(dir, name, at.path)
	if err == nil {
		l.dev, l.ino, err = setAccess(file, gid)
		file.Close()
	}
	if err == nil && private != nil {
		err = private.moveOut(name)
	}
	if err != nil {
		l.UnixListener.Close()
		if private == nil {
			// The directory is private: no other user can have replaced the file.
			_ = unix.Unlinkat(at.fd(), at.name, 0)
		}
		return nil, err
	}
	return l, nil
}

// setAccess sets group and mode of a socket's file, and returns the file's device and inode. gid
// -1: only the owner has access.
func setAccess(file *os.File, gid int) (dev, ino uint64, err error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &st); err != nil {
		return 0, 0, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFSOCK {
		return 0, 0, fmt.Errorf("expected the new socket, found a file of mode %#o", st.Mode)
	}
	mode := uint32(0o600)
	if gid >= 0 {
		if err := unix.Fchownat(int(file.Fd()), "", -1, gid, unix.AT_EMPTY_PATH); err != nil {
			if errors.Is(err, unix.EPERM) {
				return 0, 0, fmt.Errorf("group %d: %w: only root and members of the group can "+
					"set it on a socket", gid, err)
			}
			return 0, 0, fmt.Errorf("group %d: %w", gid, err)
		}
		mode = 0o660
	}
	return st.Dev, st.Ino, chmod(file, mode)
}

// SetGroup sets mode 0660 and the group (name or number) of an adopted socket's file, or mode 0600
// if group is empty. It also makes a Server check the clients in the socket's backlog. A file that
// was removed or replaced is left alone. SetGroup must be called before Server.Serve.
func (l *Listener) SetGroup(group string) error {
	gid, err := groupOrNone(group)
	if err != nil {
		return fmt.Errorf("socket %s: %w", l.entry.path, err)
	}
	l.checkPeers, l.gid = true, gid
	file, err := l.entry.file()
	if err != nil {
		return nil
	}
	defer file.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &st); err != nil || st.Dev != l.dev || st.Ino != l.ino {
		return nil
	}
	if !l.entry.private {
		// Another user may have moved another socket of this user there.
		if st.Mode&0o777 == 0o600 && gid < 0 || st.Mode&0o777 == 0o660 && int(st.Gid) == gid {
			return nil
		}
		return fmt.Errorf("socket %s: mode %#o of group %d cannot be changed, because other "+
			"users can replace the file: stop the process that made it, then start this one",
			l.entry.path, st.Mode&0o777, st.Gid)
	}
	if _, _, err := setAccess(file, gid); err != nil {
		return fmt.Errorf("socket %s: %w", l.entry.path, err)
	}
	return nil
}

// SetKeepFile makes Close keep the socket's file, for another process that listens on the socket.
func (l *Listener) SetKeepFile(on bool) { l.keepFile.Store(on) }

// KeepsFile reports whether Close keeps the socket's file.
func (l *Listener) KeepsFile() bool { return l.keepFile.Load() }

// Path returns the path of the socket's file.
func (l *Listener) Path() string { return l.entry.path }

// Addr returns Path as an address. The kernel may know the socket under the name in a privateDir.
func (l *Listener) Addr() net.Addr { return &net.UnixAddr{Name: l.entry.path, Net: "unix"} }

// Close stops listening and removes the socket's file, unless it was replaced or SetKeepFile
// forbids it.
func (l *Listener) Close() error {
	if !l.keepFile.Load() {
		// Fails outside the directories of a confined process: the file stays.
		_ = l.entry.remove(l.dev, l.ino)
	}
	l.entry.dir.Close()
	return l.UnixListener.Close()
}

// removeStale removes a socket file that refuses connections.
func removeStale(at *dirEntry) error {
	file, err := at.file()
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("socket %s: %w", at.path, err)
	}
	defer file.Close()
	fi, err := file.Stat()
	if err != nil {
		return fmt.Errorf("socket %s: %w", at.path, err)
	}
	if fi.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("socket %s: expected a socket or no file, found a file with mode %s: "+
			"choose another path", at.path, fi.Mode())
	}
	// Connects to this file even if its name was changed. If the backlog is full, connect waits,
	// which also proves a listener.
	conn, err := net.DialTimeout("unix", "/proc/self/fd/"+strconv.Itoa(int(file.Fd())), time.Second)
	if err == nil {
		conn.Close()
	}
	if !errors.Is(err, unix.ECONNREFUSED) {
		return fmt.Errorf("%s: %w by another process: stop that one or choose another path",
			at.path, ErrInUse)
	}
	st := fi.Sys().(*syscall.Stat_t)
	if err := at.remove(st.Dev, st.Ino); err != nil {
		return fmt.Errorf("socket %s: no process listens on it, but it cannot be replaced: %w",
			at.path, err)
	}
	return nil
}

// lockTimeout bounds the wait for a directory's lock, because any user who can read the directory
// can hold it. At the timeout the caller continues without the lock; only two processes that start
// on one stale socket at the same time are affected.
const (
	lockTimeout = time.Second
	lockPoll    = 5 * time.Millisecond
)

// lockDir takes an exclusive flock of the entry's directory and returns the function that releases
// it.
func lockDir(at *dirEntry) (unlock func()) {
	fd, err := unix.Openat(at.fd(), ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return func() {}
	}
	for end := time.Now().Add(lockTimeout); time.Now().Before(end); time.Sleep(lockPoll) {
		err = unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.EWOULDBLOCK) {
			break
		}
	}
	return func() {
		// Explicitly, because a child that is being forked briefly shares the descriptor.
		_ = unix.Flock(fd, unix.LOCK_UN)
		unix.Close(fd)
	}
}

// CheckPath returns an error if path is too long for a socket's address.
func CheckPath(path string) error {
	if len(path) > maxPath {
		return fmt.Errorf("socket %s: the path has %d bytes, at most %d are possible: choose a "+
			"shorter path", path, len(path), maxPath)
	}
	return nil
}

// CheckGroup returns an error if group is not the name or number of a group.
func CheckGroup(group string) error {
	_, err := groupOrNone(group)
	return err
}

// groupOrNone resolves a group's name or number; -1 for the empty string.
func groupOrNone(group string) (int, error) {
	if group == "" {
		return -1, nil
	}
	if n, err := strconv.ParseUint(group, 10, 31); err == nil {
		return int(n), nil
	}
	g, err := user.LookupGroup(group)
	if errors.As(err, new(user.UnknownGroupError)) {
		return 0, fmt.Errorf("group %q: expected the name or the number of a group, found none "+
			"of that name", group)
	}
	if err != nil {
		return 0, fmt.Errorf("group %q: %w", group, err)
	}
	return strconv.Atoi(g.Gid)
}
