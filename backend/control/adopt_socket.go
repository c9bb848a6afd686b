package control

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// AdoptUnix returns a Listener on a listening socket that another process made at path and passed
// as fd. It closes fd in any case, because package net works on a duplicate. Close removes the
// socket's file only if the file at path is a socket now and still the same then. AdoptUnix changes
// neither mode nor group.
func AdoptUnix(fd int, path string) (*Listener, error) {
	file := os.NewFile(uintptr(fd), path)
	if file == nil {
		return nil, fmt.Errorf("socket %s: file descriptor %d: expected one that is open", path, fd)
	}
	defer file.Close()
	on, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	if err != nil || on != 1 {
		return nil, fmt.Errorf("socket %s: expected a listening socket (%v)", path, err)
	}
	nl, err := net.FileListener(file)
	if err != nil {
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	ul, ok := nl.(*net.UnixListener)
	if !ok {
		nl.Close()
		return nil, fmt.Errorf("socket %s: expected a UNIX stream socket, found %s",
			path, nl.Addr().Network())
	}
	ul.SetUnlinkOnClose(false)
	at := &dirEntry{path: path} // an abstract address, or the directory is gone: it still listens
	if filepath.IsAbs(path) {
		if opened, err := openDirEntry(path); err == nil {
			at = opened
		}
	}
	l := &Listener{UnixListener: ul, entry: at}
	if l.dev, l.ino, ok = at.identity(); !ok {
		l.SetKeepFile(true)
	}
	return l, nil
}

// Duplicate returns another descriptor of a socket. (*net.UnixListener).File would make the socket
// blocking for both.
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
