package eventfd

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// read takes the count; n is the number of bytes read. Unlike unix.Read it allocates nothing, with
// the race detector either.
func read(fd int) (count uint64, n int, errno unix.Errno) {
	r, _, errno := unix.Syscall(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(&count)), 8)
	return count, int(r), errno
}

// add adds to the count; see read.
func add(fd int, n uint64) unix.Errno {
	_, _, errno := unix.Syscall(unix.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(&n)), 8)
	return errno
}
