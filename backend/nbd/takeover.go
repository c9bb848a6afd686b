package nbd

import (
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"cowblk/backend/control"
)

// EachSocket calls f for each socket that can be passed to another process, and returns the
// addresses of the others (vsock).
func (s *Server) EachSocket(f func(a Address, l syscall.Conn) error) (others []Address, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.listeners {
		c, ok := l.Listener.(syscall.Conn)
		if !ok {
			others = append(others, l.addr)
			continue
		}
		if err := f(l.addr, c); err != nil {
			return others, err
		}
	}
	return others, nil
}

// KeepFiles makes Close keep the files of UNIX sockets, for another process that listens on them.
func (s *Server) KeepFiles() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.listeners {
		if u, ok := l.Listener.(*control.Listener); ok {
			u.SetKeepFile(true)
		}
	}
}

// Adopt is Listen on a socket that another process made at a and passed as fd. It closes fd in any
// case.
func (s *Server) Adopt(a Address, fd int) error {
	nl, err := adopt(a, fd, s.opts.Group)
	if err != nil {
		return fmt.Errorf("socket %s of another process: %w", a, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		nl.Close()
		return ErrClosed
	}
	s.add(nl, a)
	return nil
}

// adopt returns a listener on fd. A UNIX socket gets the group of this process.
func adopt(a Address, fd int, group string) (net.Listener, error) {
	if a.Network == "unix" {
		l, err := control.AdoptUnix(fd, a.Path)
		if err != nil {
			return nil, err // not a nil *Listener in an interface
		}
		if err := l.SetGroup(group); err != nil {
			return nil, errors.Join(err, l.Close())
		}
		return l, nil
	}
	file := os.NewFile(uintptr(fd), a.String())
	if file == nil {
		return nil, fmt.Errorf("file descriptor %d: %w", fd, unix.EBADF)
	}
	defer file.Close() // net works on a duplicate
	return net.FileListener(file)
}
