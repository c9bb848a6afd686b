package main

import (
	"fmt"
	"log/slog"
	"syscall"

	"golang.org/x/sys/unix"

	"cowblk/backend/control"
)

// controlName is the FDNAME of the control socket. It is not a valid name of a disk.
const controlName = ".control"

// storeSockets passes the sockets of this process to systemd's file descriptor store (sd_notify(3),
// FDSTORE=1). After a restart they are in LISTEN_FDS, and front-ends that connect meanwhile wait
// instead of being refused. With the default FileDescriptorStoreMax=0, systemd does not keep them.
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

// storeSocket passes one socket to systemd and keeps its file when this process ends.
func storeSocket(to, name string, l any, log *slog.Logger) {
	listener, ok := l.(*control.Listener)
	if !ok || listener.KeepsFile() {
		return // from systemd, or --fd
	}
	if err := notifyFD(to, "FDSTORE=1\nFDNAME="+name, listener); err != nil {
		log.Warn("cannot store a socket in systemd for a restart", "name", name, "err", err)
		return
	}
	listener.SetKeepFile(true)
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
	if err := unix.Sendmsg(sock, []byte(state), unix.UnixRights(fd), &unix.SockaddrUnix{Name: to}, 0); err != nil {
		return fmt.Errorf("%s: %w", to, err)
	}
	return nil
}
