package aio

import "golang.org/x/sys/unix"

// transfer performs o and waits for it. The iovecs are outside Go's heap, so that their address is
// a number.
//
// The offset goes into the low word alone: the kernel ignores the high word on 64-bit machines
// (pos_from_hilo, fs/read_write.c), the only ones that this package supports.
func transfer(o *operation) (int, unix.Errno) {
	trap := uintptr(unix.SYS_PREADV)
	if o.write {
		trap = unix.SYS_PWRITEV
	}
	for {
		n, _, errno := unix.Syscall6(trap, uintptr(o.fd), o.iov, uintptr(o.count), uintptr(o.off), 0, 0)
		switch errno {
		case 0:
			return int(n), 0
		case unix.EINTR:
		default:
			return 0, errno
		}
	}
}
