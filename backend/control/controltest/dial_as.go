package controltest

import (
	"fmt"
	"net"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// DialAs connects to a UNIX socket with a user, a group and supplementary groups, without
// privileges. It skips the test unless it runs as root.
func DialAs(t testing.TB, path string, uid, gid int, more ...uint32) (*net.UnixConn, error) {
	t.Helper()
	if unix.Geteuid() != 0 {
		t.Skip("only root can be another user")
	}
	type result struct {
		conn *net.UnixConn
		err  error
	}
	done := make(chan result)
	go func() {
		// The raw system calls change only this thread, which ends with the goroutine.
		runtime.LockOSThread()
		for _, call := range [][4]uintptr{
			{unix.SYS_SETGROUPS, uintptr(len(more)), address(more), 0},
			{unix.SYS_SETRESGID, uintptr(gid), uintptr(gid), uintptr(gid)},
			{unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)},
		} {
			if _, _, errno := unix.RawSyscall(call[0], call[1], call[2], call[3]); errno != 0 {
				done <- result{err: fmt.Errorf("become user %d: %w", uid, errno)}
				return
			}
		}
		conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
		done <- result{conn, err}
	}()
	r := <-done
	return r.conn, r.err
}
