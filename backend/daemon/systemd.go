package daemon

import (
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"

	"github.com/coreos/go-systemd/v22/activation"
	"golang.org/x/sys/unix"

	"cowblk/backend/control"
)

// controlName is the FDNAME of the control socket. It is not a valid name of a disk.
const controlName = ".control"

// systemdSockets takes the sockets that systemd passes (socket activation, or its file descriptor
// store): the control socket and, if there are others, one for each disk. found: each disk has one.
func (d *Daemon) systemdSockets() (stored *control.Listener, found bool, err error) {
	all, err := activation.ListenersWithNames()
	if err != nil {
		return nil, false, fmt.Errorf("sockets from systemd: %w", err)
	}
	for _, l := range all[controlName] {
		ul, ok := l.(*net.UnixListener)
		if !ok || stored != nil || d.opts.Store == nil {
			l.Close()
			continue
		}
		stored, err = fromSystemd(ul, func() (string, error) {
			return d.opts.Store.ControlSocket(d.exports[0].name)
		})
		if err != nil {
			return nil, false, fmt.Errorf("control socket from systemd: %w", err)
		}
	}
	delete(all, controlName)
	if len(all) == 0 {
		return stored, false, nil
	}
	total := 0
	var only net.Listener
	for _, ls := range all {
		total += len(ls)
		only = ls[0]
	}
	for _, e := range d.exports {
		l := only
		if named := all[e.name]; len(named) == 1 {
			l = named[0]
		} else if total != 1 || len(d.exports) != 1 {
			return nil, false,
				fmt.Errorf("disk %q: expected one socket with FileDescriptorName=%s from systemd, found %d of that name and %d in all",
					e.name, e.name, len(named), total)
		}
		ul, ok := l.(*net.UnixListener)
		if !ok {
			return nil, false,
				fmt.Errorf("disk %q: expected a UNIX stream socket from systemd, found %s", e.name,
					l.Addr().Network())
		}
		e.listener, err = fromSystemd(ul, func() (string, error) { return d.socketPath(e.name) })
		if err != nil {
			return nil, false, fmt.Errorf("disk %q: socket from systemd: %w", e.name, err)
		}
		e.path = e.listener.Path()
	}
	return stored, true, nil
}

// fromSystemd returns a listener on a socket that systemd keeps. If control.ListenUnix made it in a
// directory of another user, the kernel knows it by a /proc path only; path returns the true one.
func fromSystemd(l *net.UnixListener, path func() (string, error)) (_ *control.Listener,
	err error) {
	at := l.Addr().String()
	if strings.HasPrefix(at, "/proc/self/fd/") {
		if at, err = path(); err != nil {
			return nil, err
		}
	}
	return keepListener(l, at)
}

// storeSockets passes the sockets of this process to systemd's file descriptor store (sd_notify(3),
// FDSTORE=1). After a restart they are in LISTEN_FDS, and front-ends that connect meanwhile wait
// instead of being refused. With the default FileDescriptorStoreMax=0, systemd does not keep them.
func (d *Daemon) storeSockets() {
	to := os.Getenv("NOTIFY_SOCKET")
	if to == "" {
		return
	}
	for _, e := range d.exports {
		d.storeSocket(to, e.name, e.listener)
	}
	if d.control != nil {
		for _, l := range d.control.Listeners() {
			d.storeSocket(to, controlName, l)
		}
	}
}

// storeSocket passes one socket to systemd and keeps its file when this process ends.
func (d *Daemon) storeSocket(to, name string, l *control.Listener) {
	if l == nil || l.KeepsFile() {
		return // from systemd, or --fd
	}
	if err := notifyFD(to, "FDSTORE=1\nFDNAME="+name, l); err != nil {
		d.log.Warn("cannot store a socket in systemd for a restart", "name", name, "err", err)
		return
	}
	l.SetKeepFile(true)
}

// notifyFD is sd_notify with a file descriptor, which go-systemd does not support.
func notifyFD(to, state string, s syscall.Conn) error {
	fd, err := control.Duplicate(s)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	// Package net does not send descriptors on a connected datagram socket.
	sock, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	defer unix.Close(sock)
	if err := unix.Sendmsg(sock, []byte(state), unix.UnixRights(fd), &unix.SockaddrUnix{Name: to},
		0); err != nil {
		return fmt.Errorf("%s: %w", to, err)
	}
	return nil
}
