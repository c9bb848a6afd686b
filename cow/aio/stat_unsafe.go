package aio

import (
	"errors"
	"fmt"
	"runtime"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// StatMask has the members of struct statx that Stat requests. A file system may not have all.
const StatMask = unix.STATX_INO | unix.STATX_SIZE | unix.STATX_MTIME | unix.STATX_CTIME

// Stat performs statx(2) on many files with few system calls: one for each MaxDepth files.
// Symbolic links are followed. It fills results and errs (0: none), which are as long as names, and
// blocks. An error of errors.ErrUnsupported: the kernel has no io_uring, no IORING_OP_STATX (before
// Linux 5.6), or forbids it.
func Stat(names []string, results []unix.Statx_t, errs []unix.Errno) error {
	for start := 0; start < len(names); start += MaxDepth {
		end := min(start+MaxDepth, len(names))
		if err := statSome(names[start:end], results[start:end], errs[start:end]); err != nil {
			return err
		}
	}
	return nil
}

func statSome(names []string, results []unix.Statx_t, errs []unix.Errno) error {
	for _, name := range names {
		if strings.IndexByte(name, 0) >= 0 {
			return fmt.Errorf("stat %q: %w", name, unix.EINVAL)
		}
	}
	k, err := setup(len(names), 0)
	if err != nil {
		return setupError(err)
	}
	var text []byte // the names, each with a zero byte
	offsets := make([]int, len(names))
	for i, name := range names {
		offsets[i] = len(text)
		text = append(append(text, name...), 0)
	}
	// Pinned memory is on the heap and does not move.
	var pins runtime.Pinner
	defer pins.Unpin()
	pins.Pin(&text[0])
	pins.Pin(&results[0])
	for i := range names {
		k.sqes[i] = sqe{
			opcode: opStatx, fd: unix.AT_FDCWD, len: StatMask, userData: uint64(i),
			addr: uint64(uintptr(unsafe.Pointer(&text[offsets[i]]))),
			off:  uint64(uintptr(unsafe.Pointer(&results[i]))),
		}
	}
	k.sqTail.Store(uint32(len(names)))
	taken, errno := k.submit(len(names))
	// The kernel writes to results until the last completion: nothing may return before that.
	unsupported := k.reapStat(taken, errs)
	k.release()
	switch {
	case errno != 0:
		return setupError(errno)
	case unsupported:
		return fmt.Errorf("stat by io_uring: %w", errors.ErrUnsupported)
	}
	return nil
}

// reapStat waits for n completions. unsupported: the kernel does not know the operation.
func (r *rings) reapStat(n int, errs []unix.Errno) (unsupported bool) {
	head := uint32(0)
	for left := n; left > 0; {
		tail := r.cqTail.Load() // acquire: the entries before it are complete
		if tail == head {
			// Any error but EINTR is repeated: the kernel still owns the memory.
			_, _, errno := unix.Syscall6(unix.SYS_IO_URING_ENTER, uintptr(r.fd), 0, uintptr(left),
				enterGetEvents, 0, 0)
			if errno != 0 && errno != unix.EINTR {
				time.Sleep(time.Millisecond)
			}
			continue
		}
		for ; head != tail; head++ {
			entry := r.cqes[head&uint32(len(r.cqes)-1)]
			left--
			errno := unix.Errno(0)
			if entry.res < 0 {
				errno = unix.Errno(-entry.res)
			}
			errs[entry.userData] = errno
			unsupported = unsupported || errno == unix.EINVAL || errno == unix.EOPNOTSUPP
		}
		r.cqHead.Store(head) // release: they have been read
	}
	return unsupported
}
