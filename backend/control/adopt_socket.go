package control

import (
	"fmt"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// AdoptUnix makes a Listener of a listening socket that another process has made at
// path and passed on. fd is closed in any case: the net package works on a duplicate.
// The socket's file is removed by Close if it is the one that lies there now; nothing
// else about it changes, its mode and group included.
func AdoptUnix(fd int, path string) (*Listener, error) {
	file := os.NewFile(uintptr(fd), path)
	if file == nil {
		return nil, fmt.Errorf("socket %s: file descriptor %d: expected one that is open", path, fd)
	}
	defer file.Close()
	if on, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN); err != nil || on != 1 {
		return nil, fmt.Errorf("socket %s: expected a socket that listens, found another (%v)", path, err)
	}
	nl, err := net.FileListener(file)
	if err != nil {
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	ul, ok := nl.(*net.UnixListener)
	if !ok {
		nl.Close()
		return nil, fmt.Errorf("socket %s: expected a UNIX stream socket, found %s", path, nl.Addr().Network())
	}
	ul.SetUnlinkOnClose(false)
	at, err := openDirEntry(path)
	if err != nil { // the directory has gone, say: what listens is there all the same
		at = &dirEntry{path: path}
	}
	l := &Listener{UnixListener: ul, entry: at}
	if l.dev, l.ino, ok = at.identity(); !ok {
		l.SetKeepFile(true)
	}
	return l, nil
}

// Duplicate returns another descriptor of a socket. The net package's own way, File,
// would make the socket a blocking one for both.
func Duplicate(l syscall.Conn) (fd int, err error) {
	raw, err := l.SyscallConn()
	if err != nil {
		return -1, err
	}
	cerr := raw.Control(func(old uintptr) { fd, err = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0) })
	if cerr != nil {
		return -1, cerr
	}
	if err != nil {
		return -1, fmt.Errorf("duplicate a socket: %w", err)
	}
	return fd, nil
}
