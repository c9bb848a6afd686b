package vfs

import (
	"errors"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// ErrWouldBlock is returned by File.PreadvNowait, as it is and not wrapped, when
// the first byte is not in memory: read it by a call that may wait.
var ErrWouldBlock = errors.New("would have to wait for a device")

// nowait is what has been found out about RWF_NOWAIT on one file.
type nowait uint32

const (
	nowaitUntried nowait = iota // or tried and taken
	nowaitRefused               // by the kernel (before 4.14) or the file system
)

// nowaitState is a nowait that many threads read and any of them may set. It
// only ever goes from untried to refused.
type nowaitState struct{ v atomic.Uint32 }

func (s *nowaitState) refused() bool { return nowait(s.v.Load()) == nowaitRefused }
func (s *nowaitState) refuse()       { s.v.Store(uint32(nowaitRefused)) }

// PreadvNowait implements File. The first refusal is remembered, so that a file
// system without RWF_NOWAIT costs one failed call per open file.
//
// The kernel starts to read what is missing before it says no, which takes as
// long as a device takes to be told (tens of µs in a virtual machine); whoever
// reads it next finds it on its way. Now and then the device is the faster one
// of the two, and the read succeeds after all.
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

// AsyncFD implements File. A file that lives in memory has nothing to wait for,
// and an asynchronous engine would only hand the copy to another thread: there
// the methods are the faster way by far.
func (f *osFile) AsyncFD([]Iovec, int64) int {
	if f.memory {
		return -1
	}
	return f.fd
}

// inMemory reports whether the file's content is memory and nothing else, so
// that no read of it waits for a device (unless it has been swapped out, which
// is true of all memory). These file systems have no RWF_NOWAIT and no cache
// that direct I/O could go around.
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
