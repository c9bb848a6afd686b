package vfs

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// gather copies the memory of iov to p, up to p's length, and returns the number of bytes.
func gather(p []byte, iov []Iovec) (n int) {
	for i := range iov {
		n += copy(p[n:], unsafe.Slice(iov[i].Base, iov[i].Len))
	}
	return n
}

// scatter copies p to the memory of iov and returns the number of bytes.
func scatter(iov []Iovec, p []byte) (n int) {
	for i := range iov {
		n += copy(unsafe.Slice(iov[i].Base, iov[i].Len), p[n:])
	}
	return n
}

// preadPwrite is pread or pwrite; see vectored.
func preadPwrite(trap uintptr, fd int, p []byte, off int64) (int, unix.Errno) {
	if len(p) == 0 {
		return 0, 0
	}
	for {
		n, _, errno := unix.Syscall6(trap, uintptr(fd), uintptr(unsafe.Pointer(&p[0])), uintptr(len(p)), uintptr(off), 0, 0)
		if errno != unix.EINTR {
			return int(n), errno
		}
	}
}
