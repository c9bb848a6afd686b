package vfs

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// PreadvNowait implements File. It remembers the first refusal, so that a file system without
// RWF_NOWAIT costs one failed call per open file.
//
// The kernel starts to read missing pages before it returns, which takes as long as submitting the
// read to the device (tens of µs in a virtual machine); a read that follows finds it under way.
// Occasionally the device is faster than the return, and the read succeeds.
func (f *osFile) PreadvNowait(iov []Iovec, off int64) (int, error) {
	if f.memory {
		return f.Preadv(iov, off)
	}
	if off < 0 { // -1 would be the descriptor's own position
		return 0, f.fail("read", unix.EINVAL)
	}
	if f.nowaitRefused.Load() {
		return 0, ErrWouldBlock
	}
	n, errno := vectored(unix.SYS_PREADV2, f.fd, iov, off, unix.RWF_NOWAIT)
	switch errno {
	case 0:
		return n, nil
	case unix.EAGAIN:
		return 0, ErrWouldBlock
	case unix.EOPNOTSUPP, unix.ENOSYS:
		f.nowaitRefused.Store(true)
		return 0, ErrWouldBlock
	default:
		return 0, f.fail("read", errno)
	}
}

// AsyncFD implements File. A read of a file in memory does not wait, and an asynchronous engine
// would only hand the copy to another thread: the methods are much faster there.
func (f *osFile) AsyncFD([]Iovec, int64) int {
	if f.memory {
		return -1
	}
	return f.fd
}

// Preadv implements File.
func (f *osFile) Preadv(iov []Iovec, off int64) (int, error) {
	n, errno := vectored(unix.SYS_PREADV, f.fd, iov, off, 0)
	if errno != 0 {
		return 0, f.fail("read", errno)
	}
	return n, nil
}

// Pwritev implements File.
func (f *osFile) Pwritev(iov []Iovec, off int64) (int, error) {
	n, errno := vectored(unix.SYS_PWRITEV, f.fd, iov, off, 0)
	if errno != 0 {
		return 0, f.fail("write", errno)
	}
	return n, nil
}

// vectored runs preadv, pwritev or preadv2 on the caller's iovec array; flags are for preadv2. It
// uses Syscall6 and not its raw form because the call may block, even with RWF_NOWAIT: the copy can
// be long and its destination can fault. The garbage collector must not wait for this thread.
//
// The offset goes into the low word alone: the kernel ignores the high word on 64-bit machines
// (pos_from_hilo, fs/read_write.c), the only ones that this package supports.
func vectored(trap uintptr, fd int, iov []Iovec, off int64, flags uintptr) (int, unix.Errno) {
	if len(iov) == 0 {
		return 0, 0
	}
	count := min(len(iov), MaxIovecs)
	for {
		n, _, errno := unix.Syscall6(trap, uintptr(fd), uintptr(unsafe.Pointer(&iov[0])),
			uintptr(count), uintptr(off), 0, flags)
		if errno != unix.EINTR {
			return int(n), errno
		}
	}
}

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

// aligned reports whether this I/O can be direct. Each piece must be a whole number of blocks:
// kernels differ in what else they accept.
func (d *directFile) aligned(iov []Iovec, off int64) bool {
	bits := uintptr(off) & (d.offset - 1)
	for i := range iov {
		bits |= uintptr(unsafe.Pointer(iov[i].Base))&(d.memory-1) | uintptr(iov[i].Len)&(d.offset-1)
	}
	return bits == 0
}
