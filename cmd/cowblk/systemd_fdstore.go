package main

import (
	"fmt"
	"log/slog"
	"syscall"

	"golang.org/x/sys/unix"

	"cowblk/backend/control"
)

// controlName is the FDNAME of the control socket among systemd's; no disk can have that name.
const controlName = ".control"

// storeSockets gives the sockets that this process has made to systemd to keep, if it runs us: a restart finds them in
// LISTEN_FDS, and front-ends that come in between wait instead of being refused (sd_notify(3), FDSTORE=1). With
// FileDescriptorStoreMax=0, which is the default, systemd does not keep them.
func (a *app) storeSockets(disks []*openDisk, es endpoints, control *control.Server, log *slog.Logger) {
	to := a.getenv("NOTIFY_SOCKET")
	if to == "" {
		return
	}
	for i, o := range disks {
		storeSocket(to, o.name, es[i].listener, log)
	}
	if control != nil {
		for _, l := range control.Listeners() {
			storeSocket(to, controlName, l, log)
		}
	}
}

// storeSocket leaves the socket's file to systemd, too: what listens on it is still there when this process is not.
func storeSocket(to, name string, l any, log *slog.Logger) {
	listener, ok := l.(*control.Listener)
	if !ok || listener.KeepsFile() {
		return // it is systemd's already, or --fd
	}
	if err := notifyFD(to, "FDSTORE=1\nFDNAME="+name, listener); err != nil {
		log.Warn("systemd was not given a socket to keep over a restart", "name", name, "err", err)
		return
	}
	listener.SetKeepFile(true)
}

// notifyFD is sd_notify with a file descriptor, which go-systemd does not have.
func notifyFD(to, state string, s syscall.Conn) error {
	fd, err := control.Duplicate(s)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	// Package net does not send descriptors on a datagram socket that it has connected.
	sock, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	defer unix.Close(sock)
	if err := unix.Sendmsg(sock, []byte(state), unix.UnixRights(fd), &unix.SockaddrUnix{Name: to}, 0); err != nil {
		return fmt.Errorf("%s: %w", to, err)
	}
	return nil
}
