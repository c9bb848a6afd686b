package qmp

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrGone says that the guest that was made to hold still is no more: its QEMU has ended, or another one runs in its
// place. Nothing is to be let go.
var ErrGone = errors.New("the guest has ended since")

// Instances tell one run of a guest from the next, in the note about it: "pid N" of the process behind a UNIX socket,
// "domain N" of a run of a libvirt domain. Empty: not known.
const (
	instancePID    = "pid "
	instanceDomain = "domain "
)

// peerInstance names the process that listens on the other side of a UNIX socket (SO_PEERCRED); empty: it cannot be
// told, as of vsock and of a process in a PID namespace that we do not see.
func peerInstance(conn net.Conn) string {
	uc, ok := conn.(*net.UnixConn)
	if !ok {
		return ""
	}
	raw, err := uc.SyscallConn()
	if err != nil {
		return ""
	}
	pid := int32(0)
	if err := raw.Control(func(fd uintptr) {
		if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			pid = cred.Pid
		}
	}); err != nil || pid <= 0 {
		return ""
	}
	return instancePID + strconv.Itoa(int(pid))
}

// processState reports whether the process of an instance is known to be there, known to be gone, or neither.
func processState(instance string) (known, gone bool) {
	pid, err := strconv.Atoi(strings.TrimPrefix(instance, instancePID))
	if err != nil || pid <= 0 || !strings.HasPrefix(instance, instancePID) {
		return false, false
	}
	switch err := unix.Kill(pid, 0); {
	case err == nil, errors.Is(err, unix.EPERM): // the sandbox lets no signal out
		return true, false
	case errors.Is(err, unix.ESRCH):
		return true, true
	}
	return false, false
}

// goneIfRefused is ErrGone if err says that nobody listens on the guest's socket any more: QEMU itself listens there for as
// long as it runs. A process that is known to run may be about to listen again.
func goneIfRefused(instance string, err error) error {
	if known, _ := processState(instance); !known && errors.Is(err, unix.ECONNREFUSED) {
		return fmt.Errorf("%w: %w", ErrGone, err)
	}
	return err
}

// unlessGone runs release unless the process of an instance has ended.
func unlessGone(instance string, release func(context.Context) error) func(context.Context) error {
	return func(ctx context.Context) error {
		if _, gone := processState(instance); gone {
			return fmt.Errorf("%w: process %s is no more", ErrGone, strings.TrimPrefix(instance, instancePID))
		}
		return release(ctx)
	}
}
