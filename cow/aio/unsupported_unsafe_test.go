package aio

import (
	"errors"
	"os"
	"runtime"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"cowblk/internal/test"
)

// Where the kernel has io_uring and this process may use it, New makes an engine. Otherwise the
// other tests would be skipped silently.
func TestEngineWhereTheKernelHasIOUring(t *testing.T) {
	e, err := New(1, 0)
	if err == nil {
		e.Close()
		return
	}
	if !errors.Is(err, errors.ErrUnsupported) {
		t.Fatal(err)
	}
	disabled, _ := os.ReadFile("/proc/sys/kernel/io_uring_disabled")
	status, _ := os.ReadFile("/proc/self/status")
	if strings.TrimSpace(string(disabled)) == "0" && strings.Contains(string(status),
		"Seccomp:\t0") {
		t.Fatalf("io_uring is allowed here, and: %v", err)
	}
}

// New returns errors.ErrUnsupported and the kernel's error where a filter forbids io_uring, as
// containers' do, at any of its calls.
func TestUnsupported(t *testing.T) {
	for _, c := range []struct {
		name  string
		call  uint32
		errno unix.Errno
	}{
		{"set-up not there", unix.SYS_IO_URING_SETUP, unix.ENOSYS},
		{"set-up forbidden", unix.SYS_IO_URING_SETUP, unix.EPERM},
		{"set-up denied", unix.SYS_IO_URING_SETUP, unix.EACCES},
		{"flags unknown", unix.SYS_IO_URING_SETUP, unix.EINVAL},
		{"no locked memory", unix.SYS_IO_URING_SETUP, unix.ENOMEM},
		{"enter not there", unix.SYS_IO_URING_ENTER, unix.ENOSYS},
		{"enter forbidden", unix.SYS_IO_URING_ENTER, unix.EPERM},
		{"register forbidden", unix.SYS_IO_URING_REGISTER, unix.EPERM},
	} {
		t.Run(c.name, func(t *testing.T) {
			forbid(t, c.call, c.errno)
			if e, err := New(1, eventFD(t)); e != nil || !errors.Is(err, errors.ErrUnsupported) ||
				!errors.Is(err, c.errno) {
				t.Fatalf("New: %v, %v, expected ErrUnsupported and %v", e, err, c.errno)
			}
		})
	}
}

// A failure other than missing support is not reported as such.
func TestOtherFailures(t *testing.T) {
	forbid(t, unix.SYS_IO_URING_SETUP, unix.EMFILE)
	if e, err := New(1, 0); !errors.Is(err, unix.EMFILE) || errors.Is(err, errors.ErrUnsupported) {
		t.Fatalf("New: %v, %v", e, err)
	}
	if _, err := New(-1, 0); !errors.Is(err, ErrOptions) {
		t.Fatalf("New: %v", err)
	}
}

// forbid makes a system call fail on this thread, by a seccomp filter, which cannot be removed: the
// thread ends with the test's goroutine.
func forbid(t *testing.T, call uint32, errno unix.Errno) {
	t.Helper()
	runtime.LockOSThread()
	const (
		load     = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
		jumpSame = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
		answer   = unix.BPF_RET | unix.BPF_K
	)
	filter := []unix.SockFilter{
		{Code: load, K: 0}, // struct seccomp_data: nr
		{Code: jumpSame, K: call, Jf: 1},
		{Code: answer, K: unix.SECCOMP_RET_ERRNO | uint32(errno)},
		{Code: answer, K: unix.SECCOMP_RET_ALLOW},
	}
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	test.Must(t, unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
	_, _, e := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0,
		uintptr(unsafe.Pointer(&prog)))
	if e != 0 {
		t.Fatal(e)
	}
}
