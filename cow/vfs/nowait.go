package vfs

import (
	"errors"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// ErrWouldBlock is returned by File.PreadvNowait, not wrapped, when the first byte is not in
// memory: read it by a call that may block.
var ErrWouldBlock = errors.New("would have to wait for a device")

// nowait is what is known about RWF_NOWAIT on one file.
type nowait uint32

const (
	nowaitUntried nowait = iota // or tried and accepted
	nowaitRefused               // by the kernel (before 4.14) or the file system
)

// nowaitState is a nowait that any thread may set. It changes from untried to refused only.
type nowaitState struct{ v atomic.Uint32 }

func (s *nowaitState) refused() bool { return nowait(s.v.Load()) == nowaitRefused }
func (s *nowaitState) refuse()       { s.v.Store(uint32(nowaitRefused)) }

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
	if f.nowait.refused() {
		return 0, ErrWouldBlock
	}
	n, errno := vectoredNowait(f.fd, iov, off)
	switch errno {
	case 0:
		return n, nil
	case unix.EAGAIN:
		return 0, ErrWouldBlock
	case unix.EOPNOTSUPP, unix.ENOSYS:
		f.nowait.refuse()
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

// inMemory reports whether the file's content is memory only, so that no read waits for a device
// (unless the memory was swapped out). These file systems have neither RWF_NOWAIT nor a cache that
// direct I/O could bypass.
func inMemory(fd int) bool {
	var st unix.Statfs_t
	if err := ignoringEINTR(func() error { return unix.Fstatfs(fd, &st) }); err != nil {
		return false
	}
	switch int64(st.Type) {
	case unix.TMPFS_MAGIC, unix.RAMFS_MAGIC, unix.HUGETLBFS_MAGIC:
		return true
	}
	return false
}
