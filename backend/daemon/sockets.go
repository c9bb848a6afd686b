package daemon

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"cowblk/backend/control"
	"cowblk/cow/store"
)

// findSockets gives each disk its socket: from the old process, Options.FD, systemd, or a new one.
// stored is the control socket that systemd has kept; nil: none.
func (d *Daemon) findSockets() (stored *control.Listener, err error) {
	if d.old != nil {
		return nil, d.old.passSockets(d.exports)
	}
	if d.opts.FD != nil {
		return nil, d.exports[0].useFD(*d.opts.FD)
	}
	stored, found, err := d.systemdSockets()
	if found || err != nil {
		return stored, err
	}
	for _, e := range d.exports {
		if err := d.listen(e); err != nil {
			return stored, fmt.Errorf("disk %q: %w", e.name, err)
		}
	}
	return stored, nil
}

// listen makes the disk's socket.
func (d *Daemon) listen(e *Export) (err error) {
	if e.path, err = d.socketPath(e.name); err != nil {
		return err
	}
	listen := func(path string) (err error) {
		e.listener, err = control.ListenUnix(path, d.opts.SocketGroup)
		return err
	}
	switch {
	case d.opts.SocketPath == "":
		e.path, err = d.listenInRunDir(e.path, listen)
		return err
	case d.opts.Store == nil:
		return listen(e.path)
	}
	return d.opts.Store.WithReserve(func() error { return listen(e.path) })
}

// socketPath returns the absolute path of a disk's socket.
func (d *Daemon) socketPath(name string) (path string, err error) {
	switch path = d.opts.SocketPath; {
	case path == "" && d.opts.Store == nil:
		return "", optionErrorf(
			"serve: --socket-path is missing: the path of the socket for --blk-file")
	case path == "":
		if path, err = d.opts.Store.Socket(name); err != nil {
			return "", err
		}
	}
	return filepath.Abs(path)
}

// controlSocket makes the control socket, or takes it from the old process or systemd (stored). In
// each case only the owner and the control group may connect.
func (d *Daemon) controlSocket(stored *control.Listener) (path string, err error) {
	l := stored
	if d.old != nil {
		if l, err = d.old.adopt(&d.old.offer.Control); err != nil {
			return "", err
		}
	}
	if l != nil {
		return l.Path(), errors.Join(d.control.Add(l), l.SetGroup(d.opts.ControlGroup))
	}
	if path, err = d.opts.Store.ControlSocket(d.exports[0].name); err != nil {
		return "", err
	}
	return d.listenInRunDir(path, d.control.Listen)
}

// listenInRunDir makes a socket in the run directory, at path. On a full file system it uses the
// store's reserve. If there is still no space, it makes the socket in another directory and returns
// that path.
func (d *Daemon) listenInRunDir(path string, listen func(path string) error) (string, error) {
	st := d.opts.Store
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
	d.log.Warn("no space for a socket in the run directory, so it was made in another one: give its path to the guest's QEMU, or make space and serve the disk again",
		"expected", path, "socket", other, "err", err)
	return other, nil
}

// useFD serves the disk on an inherited descriptor: a listening socket or a connection.
func (e *Export) useFD(fd int) error {
	e.path = fmt.Sprintf("fd %d", fd)
	listening, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	if err != nil {
		return optionErrorf("serve: --fd %d: expected a UNIX socket: %w", fd, err)
	}
	if listening != 1 {
		if e.conn, err = unixConn(fd); err != nil {
			return optionErrorf("serve: --fd %d: %w", fd, err)
		}
		return nil
	}
	file := os.NewFile(uintptr(fd), e.path)
	defer file.Close() // net works on a duplicate
	l, err := net.FileListener(file)
	if err != nil {
		return optionErrorf("serve: --fd %d: %w", fd, err)
	}
	ul, ok := l.(*net.UnixListener)
	if !ok {
		l.Close()
		return optionErrorf("serve: --fd %d: expected a UNIX socket, found %s", fd,
			l.Addr().Network())
	}
	e.listener, err = keepListener(ul, ul.Addr().String())
	return err
}

// unixConn returns the connection with this descriptor, which it owns.
func unixConn(fd int) (*net.UnixConn, error) {
	file := os.NewFile(uintptr(fd), "connection")
	defer file.Close() // net works on a duplicate
	c, err := net.FileConn(file)
	if err != nil {
		return nil, err
	}
	uc, ok := c.(*net.UnixConn)
	if !ok {
		c.Close()
		return nil, fmt.Errorf("expected a UNIX socket, found %s", c.LocalAddr().Network())
	}
	return uc, nil
}

// keepListener returns a listener on a socket of another process, which keeps the socket's file.
func keepListener(l *net.UnixListener, path string) (*control.Listener, error) {
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

// closeSocket closes the socket after a failed start.
func (e *Export) closeSocket() error {
	var errs []error
	if e.listener != nil {
		errs = append(errs, e.listener.Close())
	}
	for _, c := range []*net.UnixConn{e.conn, e.pending} {
		if c != nil {
			errs = append(errs, c.Close())
		}
	}
	return errors.Join(errs...)
}
