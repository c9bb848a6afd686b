package main

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"

	"github.com/coreos/go-systemd/v22/activation"
	"golang.org/x/sys/unix"

	"cowblk/backend/control"
	"cowblk/backend/daemon"
	"cowblk/cow/store"
)

// endpoint is where one disk is served: a listening socket or a connection (--fd).
type endpoint struct {
	path     string
	listener daemon.Listener
	conn     *net.UnixConn
	accepted *net.UnixConn // accepted by the old process of a takeover; nil: none
}

type endpoints []endpoint

func (es endpoints) close() error {
	var errs []error
	for _, e := range es {
		if e.listener != nil {
			errs = append(errs, e.listener.Close())
		}
		for _, c := range []*net.UnixConn{e.conn, e.accepted} {
			if c != nil {
				errs = append(errs, c.Close())
			}
		}
	}
	return errors.Join(errs...)
}

// findSockets returns one endpoint for each disk: from the old process, --fd, systemd, or new
// sockets.
func (s *serving) findSockets(f *serveFlags, st *store.Store) (es endpoints, err error) {
	if s.old != nil {
		return s.old.endpoints(s.disks)
	}
	if f.fd >= 0 {
		e, err := inheritedSocket(f.fd)
		return endpoints{e}, err
	}
	fromSystemd, err := activation.ListenersWithNames()
	if err != nil {
		return nil, fmt.Errorf("sockets from systemd: %w", err)
	}
	if s.fromSystemd, err = systemdControl(fromSystemd, st, s.disks); err != nil {
		return nil, err
	}
	if len(fromSystemd) > 0 {
		return systemdSockets(fromSystemd, s.disks, func(name string) (string, error) { return f.socketOf(st, name) })
	}
	for _, o := range s.disks {
		var l *control.Listener
		listen := func(path string) (err error) {
			l, err = control.ListenUnix(path, f.group)
			return err
		}
		path, err := f.socketOf(st, o.name)
		switch {
		case err != nil:
		case f.socketPath == "":
			path, err = listenInRunDir(st, path, listen, s.log)
		default:
			err = withReserve(st, func() error { return listen(path) })
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("disk %q: %w", o.name, err), es.close())
		}
		es = append(es, endpoint{path: path, listener: l})
	}
	return es, nil
}

// socketOf returns the absolute path of a disk's socket.
func (f *serveFlags) socketOf(st *store.Store, name string) (path string, err error) {
	switch path = f.socketPath; {
	case path == "" && st == nil:
		return "", usagef("serve: --socket-path is missing: the path of the socket for --blk-file")
	case path == "":
		if path, err = st.Socket(name); err != nil {
			return "", err
		}
	}
	return filepath.Abs(path)
}

// checkSocketPath refuses a --socket-path whose absolute form does not fit a socket address.
func checkSocketPath(path string) error {
	if path == "" {
		return nil
	}
	path, err := filepath.Abs(path)
	if err == nil {
		err = control.CheckPath(path)
	}
	if err != nil {
		return usagef("--socket-path: %w", err)
	}
	return nil
}

// hasNoPath reports whether the address of a socket is only a /proc path, as of one that
// control.ListenUnix made in a directory of another user.
func hasNoPath(l net.Listener) bool { return strings.HasPrefix(l.Addr().String(), "/proc/self/fd/") }

// adoptSystemd returns a listener on a socket that systemd holds, with a path from elsewhere.
// systemd keeps the socket.
func adoptSystemd(l *net.UnixListener, path string) (*control.Listener, error) {
	fd, err := control.Duplicate(l)
	if err != nil {
		return nil, err
	}
	adopted, err := control.AdoptUnix(fd, path)
	if err != nil {
		return nil, err
	}
	adopted.SetKeepFile(true)
	return adopted, l.Close()
}

// listenInRunDir makes a socket in the run directory, at path. On a full file system it uses the
// store's reserve. If there is still no space, it makes the socket in another directory and returns
// that path.
func listenInRunDir(st *store.Store, path string, listen func(path string) error, log *slog.Logger) (string, error) {
	err := st.WithReserve(func() error {
		if err := st.MakeRunDir(); err != nil {
			return err
		}
		return listen(path)
	})
	if !store.CannotCreate(err) {
		return path, err
	}
	if oerr := st.MakeOtherRunDir(); oerr != nil {
		return path, errors.Join(err, oerr)
	}
	other := filepath.Join(st.OtherRunDir(), filepath.Base(path))
	if oerr := listen(other); oerr != nil {
		return path, errors.Join(err, oerr)
	}
	log.Warn("no space for a socket in the run directory, so it was made in another one: give its path to the guest's QEMU, or make space and serve the disk again",
		"expected", path, "socket", other, "err", err)
	return other, nil
}

// withReserve is st.WithReserve. st may be nil.
func withReserve(st *store.Store, f func() error) error {
	if st == nil {
		return f()
	}
	return st.WithReserve(f)
}

// systemdControl takes the control socket out of the sockets that systemd has stored; nil if it is
// not among them.
func systemdControl(listeners map[string][]net.Listener, st *store.Store, disks []*openDisk) (*control.Listener, error) {
	all := listeners[controlName]
	delete(listeners, controlName)
	var l *control.Listener
	for _, g := range all {
		if ul, ok := g.(*net.UnixListener); ok && l == nil {
			path, err := ul.Addr().String(), error(nil)
			if hasNoPath(ul) {
				path, err = st.ControlSocket(disks[0].name)
			}
			if err == nil {
				l, err = adoptSystemd(ul, path)
			}
			if err != nil {
				return nil, fmt.Errorf("control socket from systemd: %w", err)
			}
			continue
		}
		g.Close()
	}
	return l, nil
}

// systemdSockets assigns a socket from systemd to each disk: the one with the disk's name or, for a
// single disk, a single socket.
func systemdSockets(listeners map[string][]net.Listener, disks []*openDisk, path func(name string) (string, error)) (es endpoints, err error) {
	total := 0
	var only net.Listener
	for _, ls := range listeners {
		for _, l := range ls {
			total++
			only = l
		}
	}
	for _, o := range disks {
		l := only
		if named := listeners[o.name]; len(named) == 1 {
			l = named[0]
		} else if total != 1 || len(disks) != 1 {
			return nil, fmt.Errorf("disk %q: expected one socket with FileDescriptorName=%s from systemd, found %d of that name and %d in all",
				o.name, o.name, len(named), total)
		}
		ul, ok := l.(*net.UnixListener)
		if !ok {
			return nil, fmt.Errorf("disk %q: expected a UNIX stream socket from systemd, found %s", o.name, l.Addr().Network())
		}
		e := endpoint{path: ul.Addr().String(), listener: ul}
		if hasNoPath(ul) {
			if e.path, err = path(o.name); err == nil {
				e.listener, err = adoptSystemd(ul, e.path)
			}
			if err != nil {
				return nil, fmt.Errorf("disk %q: socket from systemd: %w", o.name, err)
			}
		}
		es = append(es, e)
	}
	return es, nil
}

// inheritedSocket takes --fd: a listening socket or a connection.
func inheritedSocket(fd int) (e endpoint, err error) {
	e.path = fmt.Sprintf("fd %d", fd)
	listening, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	if err != nil {
		return e, usagef("serve: --fd %d: expected a UNIX socket: %w", fd, err)
	}
	file := os.NewFile(uintptr(fd), e.path)
	defer file.Close() // net works on a duplicate
	if listening == 1 {
		l, err := net.FileListener(file)
		if err != nil {
			return e, usagef("serve: --fd %d: %w", fd, err)
		}
		ul, ok := l.(*net.UnixListener)
		if !ok {
			l.Close()
			return e, usagef("serve: --fd %d: expected a UNIX socket, found %s", fd, l.Addr().Network())
		}
		e.listener = ul
		return e, nil
	}
	c, err := net.FileConn(file)
	if err != nil {
		return e, usagef("serve: --fd %d: %w", fd, err)
	}
	uc, ok := c.(*net.UnixConn)
	if !ok {
		c.Close()
		return e, usagef("serve: --fd %d: expected a UNIX socket, found %s", fd, c.LocalAddr().Network())
	}
	e.conn = uc
	return e, nil
}
