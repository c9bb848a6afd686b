package vfs

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// vectored runs preadv or pwritev on the caller's iovec array. It uses Syscall6 and not its raw
// form because the call may block: the garbage collector must not wait for this thread.
//
// The offset goes into the low word alone: the kernel ignores the high word on 64-bit machines
// (pos_from_hilo, fs/read_write.c), the only ones that this package supports.
func vectored(trap uintptr, fd int, iov []Iovec, off int64) (int, unix.Errno) {
	if len(iov) == 0 {
		return 0, 0
	}
	count := min(len(iov), MaxIovecs)
	for {
		n, _, errno := unix.Syscall6(trap, uintptr(fd), uintptr(unsafe.Pointer(&iov[0])), uintptr(count), uintptr(off), 0, 0)
		if errno != unix.EINTR {
			return int(n), errno
		}
	}
}

// vectoredNowait runs preadv2 with RWF_NOWAIT on the caller's iovec array. The kernel does not wait
// for a device, but the copy can be long and its destination can fault, so it uses Syscall6 for the
// same reason.
func vectoredNowait(fd int, iov []Iovec, off int64) (int, unix.Errno) {
	if len(iov) == 0 {
		return 0, 0
	}
	count := min(len(iov), MaxIovecs)
	for {
		n, _, errno := unix.Syscall6(unix.SYS_PREADV2, uintptr(fd), uintptr(unsafe.Pointer(&iov[0])), uintptr(count), uintptr(off), 0, unix.RWF_NOWAIT)
		if errno != unix.EINTR {
			return int(n), errno
		}
	}
}
