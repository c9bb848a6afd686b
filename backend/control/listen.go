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

// maxPath is what a sockaddr_un holds, in bytes, without the terminating zero.
const maxPath = len(unix.RawSockaddrUnix{}.Path) - 1

// drawerSocket is the name of a socket in a drawer.
const drawerSocket = "s"

// Listener is a UNIX socket in the file system that only its owner, and the members of
// one group if there is one, can connect to.
type Listener struct {
	*net.UnixListener
	at   *place
	dev  uint64 // with ino: the file that we made, so that no other is removed
	ino  uint64
	keep atomic.Bool // see Keep
	// screened: another process may have let others connect, who wait in the backlog. Of
	// those only the owner and members of gid (-1: nobody) are clients.
	screened bool
	gid      int
}

// ListenUnix makes the socket path, mode 0600, or 0660 with the group (name or number)
// when that is not empty. At no moment has it a wider mode, whatever the umask. A
// socket file that nobody listens on is replaced; one that answers gives ErrInUse, and
// a file of another kind is left alone.
//
// The directory may belong to another user, who may change it meanwhile: nothing
// outside of it is touched, no symbolic link of another user's is followed (ErrSymlink),
// and mode and group are changed of the socket that was made here and of no other file.
func ListenUnix(path, group string) (*Listener, error) {
	if err := CheckPath(path); err != nil {
		return nil, err
	}
	gid, err := groupOrNone(group)
	if err != nil {
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	at, err := openPlace(path)
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

// listenAt makes the socket; at becomes the listener's.
func listenAt(at *place, gid int) (*Listener, error) {
	// Two starting processes must not both take the old file for stale and the second
	// remove what the first has just made: the directory's lock makes check, removal
	// and bind one step.
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

// bind makes the socket's file and gives it its group and mode. Where others can change
// the directory that is done in a directory of ours first.
func bind(at *place, gid int) (*Listener, error) {
	dir, name, address := at.dir, at.name, at.path
	var d *drawer
	if !at.private {
		var err error
		if d, err = at.newDrawer(); err != nil {
			return nil, err
		}
		defer d.close()
		dir, name, address = d.dir, drawerSocket, through(d.dir, drawerSocket)
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
	nl, err := lc.Listen(context.Background(), "unix", address)
	if err != nil {
		return nil, err
	}
	l := &Listener{UnixListener: nl.(*net.UnixListener), at: at}
	l.SetUnlinkOnClose(false)
	file, err := openEntry(dir, name, at.path)
	if err == nil {
		l.dev, l.ino, err = permit(file, gid)
		file.Close()
	}
	if err == nil && d != nil {
		err = d.moveOut(name)
	}
	if err != nil {
		l.UnixListener.Close()
		if d == nil {
			_ = unix.Unlinkat(at.fd(), at.name, 0) // nobody else could put it there
		}
		return nil, err
	}
	return l, nil
}

// permit gives a socket's file its group and mode, and says which file it is. gid -1:
// the owner only.
func permit(file *os.File, gid int) (dev, ino uint64, err error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &st); err != nil {
		return 0, 0, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFSOCK {
		return 0, 0, fmt.Errorf("expected the socket that was made, found a file of mode %#o", st.Mode)
	}
	mode := uint32(0o600)
	if gid >= 0 {
		if err := unix.Fchownat(int(file.Fd()), "", -1, gid, unix.AT_EMPTY_PATH); err != nil {
			if errors.Is(err, unix.EPERM) {
				return 0, 0, fmt.Errorf("group %d: %w: only root and members of the group can give it a socket", gid, err)
			}
			return 0, 0, fmt.Errorf("group %d: %w", gid, err)
		}
		mode = 0o660
	}
	return st.Dev, st.Ino, chmod(file, mode)
}

// Permit gives the socket's file the mode 0660 and the group (name or number), or 0600
// if that is empty, whatever the process that has made it has allowed, and has a Server
// screen who waits in its backlog. A socket that has lost its file needs neither. To be
// called before Server.Serve.
func (l *Listener) Permit(group string) error {
	gid, err := groupOrNone(group)
	if err != nil {
		return fmt.Errorf("socket %s: %w", l.at.path, err)
	}
	l.screened, l.gid = true, gid
	file, err := l.at.file()
	if err != nil {
		return nil
	}
	defer file.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &st); err != nil || st.Dev != l.dev || st.Ino != l.ino {
		return nil
	}
	if !l.at.private {
		// Another user may have put a socket there that is ours, and another one.
		if st.Mode&0o777 == 0o600 && gid < 0 || st.Mode&0o777 == 0o660 && int(st.Gid) == gid {
			return nil
		}
		return fmt.Errorf("socket %s: mode %#o of group %d cannot be changed, for other users can replace the file: stop the process that has made it, and start this one then", l.at.path, st.Mode&0o777, st.Gid)
	}
	if _, _, err := permit(file, gid); err != nil {
		return fmt.Errorf("socket %s: %w", l.at.path, err)
	}
	return nil
}

// Keep says whether Close is to leave the socket file to others: another process listens
// on the same socket, or will.
func (l *Listener) Keep(on bool) { l.keep.Store(on) }

// Kept reports whether Close leaves the socket file.
func (l *Listener) Kept() bool { return l.keep.Load() }

// Path is where the socket's file lies.
func (l *Listener) Path() string { return l.at.path }

// Addr is Path as an address. The kernel may know the socket by the name under which it
// was made.
func (l *Listener) Addr() net.Addr { return &net.UnixAddr{Name: l.at.path, Net: "unix"} }

// Close stops listening and removes the socket file, unless another took its place or
// Keep forbids it.
func (l *Listener) Close() error {
	if !l.keep.Load() {
		// A confined process may not, outside of its directories: the file stays.
		_ = l.at.remove(l.dev, l.ino)
	}
	l.at.dir.Close()
	return l.UnixListener.Close()
}

// removeStale removes a socket file that refuses connections.
func removeStale(at *place) error {
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
		return fmt.Errorf("socket %s: expected a socket or nothing there, found a file with mode %s: choose another path", at.path, fi.Mode())
	}
	// To this very file, wherever its name leads by now. A listener with a full backlog
	// makes connect wait, and that is an answer too.
	conn, err := net.DialTimeout("unix", "/proc/self/fd/"+strconv.Itoa(int(file.Fd())), time.Second)
	if err == nil {
		conn.Close()
	}
	if !errors.Is(err, unix.ECONNREFUSED) {
		return fmt.Errorf("%s: %w by another process: stop that one or choose another path", at.path, ErrInUse)
	}
	st := fi.Sys().(*syscall.Stat_t)
	if err := at.remove(st.Dev, st.Ino); err != nil {
		return fmt.Errorf("socket %s: nobody listens on it, but it cannot be replaced: %w", at.path, err)
	}
	return nil
}

// lockLimit bounds the wait for a directory's lock. Who can read the directory can hold
// it: then this goes on without, and only two processes that start on one stale socket
// in the same instant would notice.
const (
	lockLimit = time.Second
	lockPoll  = 5 * time.Millisecond
)

// lockDir takes an exclusive flock of the place's directory, until the function that it
// returns is called.
func lockDir(at *place) (unlock func()) {
	fd, err := unix.Openat(at.fd(), ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return func() {}
	}
	for end := time.Now().Add(lockLimit); time.Now().Before(end); time.Sleep(lockPoll) {
		err = unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.EWOULDBLOCK) {
			break
		}
	}
	return func() {
		// A child that is being forked has the descriptor too, for a moment.
		_ = unix.Flock(fd, unix.LOCK_UN)
		unix.Close(fd)
	}
}

// CheckPath refuses the path of a socket that no address holds.
func CheckPath(path string) error {
	if len(path) > maxPath {
		return fmt.Errorf("socket %s: the path has %d bytes, at most %d are possible: choose a shorter one", path, len(path), maxPath)
	}
	return nil
}

// CheckGroup refuses what is no group's name or number.
func CheckGroup(group string) error {
	_, err := groupOrNone(group)
	return err
}

// groupOrNone resolves a group's name or number; -1 for the empty one.
func groupOrNone(group string) (int, error) {
	if group == "" {
		return -1, nil
	}
	if n, err := strconv.ParseUint(group, 10, 31); err == nil {
		return int(n), nil
	}
	g, err := user.LookupGroup(group)
	if errors.As(err, new(user.UnknownGroupError)) {
		return 0, fmt.Errorf("group %q: expected the name or the number of a group, found none of that name", group)
	}
	if err != nil {
		return 0, fmt.Errorf("group %q: %w", group, err)
	}
	return strconv.Atoi(g.Gid)
}
