package qmp

import (
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"cowblk/backend/control"
)

// ErrGone says that the quiesced guest no longer exists: its QEMU has ended, or another run has
// replaced it. There is nothing to thaw.
var ErrGone = errors.New("the guest has ended since")

// An instance identifies one run of a guest in its quiesce record: "pid N" of the process behind a
// UNIX socket, "domain N" of a run of a libvirt domain. Empty: unknown.
const (
	instancePID    = "pid "
	instanceDomain = "domain "
)

// peerInstance returns the instance of the process that listens on a UNIX socket (SO_PEERCRED). It
// is empty for vsock, and for a process outside of this PID namespace.
func peerInstance(conn net.Conn) string {
	uc, ok := conn.(*net.UnixConn)
	if !ok {
		return ""
	}
	peer, err := control.PeerOf(uc)
	if err != nil || peer.PID <= 0 {
		return ""
	}
	return instancePID + strconv.Itoa(int(peer.PID))
}

// processState reports whether the state of an instance's process is known, and if so, whether the
// process has ended.
func processState(instance string) (known, gone bool) {
	pid, err := strconv.Atoi(strings.TrimPrefix(instance, instancePID))
	if err != nil || pid <= 0 || !strings.HasPrefix(instance, instancePID) {
		return false, false
	}
	switch err := unix.Kill(pid, 0); {
	case err == nil, errors.Is(err, unix.EPERM): // EPERM: the sandbox forbids the signal
		return true, false
	case errors.Is(err, unix.ESRCH):
		return true, true
	}
	return false, false
}

// goneIfRefused returns ErrGone if err says that no process listens on the guest's socket, where
// QEMU listens as long as it runs. If the process is known to run, it may listen again soon, and
// err is returned.
func goneIfRefused(instance string, err error) error {
	if known, _ := processState(instance); !known && errors.Is(err, unix.ECONNREFUSED) {
		return fmt.Errorf("%w: %w", ErrGone, err)
	}
	return err
}

// goneIfEnded returns ErrGone if the instance's process is known to have ended.
func goneIfEnded(instance string) error {
	if _, gone := processState(instance); gone {
		pid := strings.TrimPrefix(instance, instancePID)
		return fmt.Errorf("%w: process %s has ended", ErrGone, pid)
	}
	return nil
}
