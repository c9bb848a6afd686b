package aio

import (
	"fmt"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// rings are the memory shared with the kernel, and its descriptor. Who writes which word:
//
//	sqHead    kernel, during io_uring_enter
//	sqTail    we, before it
//	sqFlags   kernel, any time, from any CPU
//	sqes      we, beyond sqHead
//	cqHead    we
//	cqTail    kernel, with release, after the entries before it
//	cqFlags   we
//	cqes      kernel, from cqTail on
//
// Go's atomics are sequentially consistent: each load is at least an acquire, each store at least a
// release, and a store followed by a load of another word is seen in that order.
type rings struct {
	fd      int
	mapping []byte
	sqeMap  []byte

	sqHead, sqTail, sqFlags *atomic.Uint32
	cqHead, cqTail, cqFlags *atomic.Uint32
	sqes                    []sqe
	cqes                    []cqe
}

// setup makes an io_uring of at least depth submission entries. If the system call fails the error
// is its Errno.
func setup(depth int, flags uint32) (*rings, error) {
	p := params{flags: flags}
	fd, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, uintptr(depth),
		uintptr(unsafe.Pointer(&p)), 0)
	if errno != 0 {
		return nil, errno
	}
	r := &rings{fd: int(fd)}
	if need := uint32(featSingleMmap | featNoDrop | featSubmitStable); p.features&need != need {
		r.release()
		return nil, unix.ENOSYS
	}
	if err := r.mmap(&p); err != nil {
		r.release()
		return nil, err
	}
	return r, nil
}

func (r *rings) mmap(p *params) (err error) {
	const shared = unix.MAP_SHARED | unix.MAP_POPULATE
	size := max(p.sqOff.array+p.sqEntries*4, p.cqOff.cqes+p.cqEntries*uint32(unsafe.Sizeof(cqe{})))
	r.mapping, err = unix.Mmap(r.fd, offRings, int(size), unix.PROT_READ|unix.PROT_WRITE, shared)
	if err != nil {
		return fmt.Errorf("map the rings of an io_uring: %w", err)
	}
	r.sqeMap, err = unix.Mmap(r.fd, offSQEs, int(p.sqEntries)*int(unsafe.Sizeof(sqe{})),
		unix.PROT_READ|unix.PROT_WRITE, shared)
	if err != nil {
		return fmt.Errorf("map the entries of an io_uring: %w", err)
	}
	base := unsafe.Pointer(unsafe.SliceData(r.mapping))
	word := func(off uint32) *atomic.Uint32 { return (*atomic.Uint32)(unsafe.Add(base, off)) }
	r.sqHead, r.sqTail, r.sqFlags = word(p.sqOff.head), word(p.sqOff.tail), word(p.sqOff.flags)
	r.cqHead, r.cqTail, r.cqFlags = word(p.cqOff.head), word(p.cqOff.tail), word(p.cqOff.flags)
	r.sqes = unsafe.Slice((*sqe)(unsafe.Pointer(unsafe.SliceData(r.sqeMap))), p.sqEntries)
	r.cqes = unsafe.Slice((*cqe)(unsafe.Add(base, p.cqOff.cqes)), p.cqEntries)
	if p.flags&setupNoSQArray == 0 {
		// Kernels before 6.6 have an index array: entry i is entry i.
		array := unsafe.Slice((*uint32)(unsafe.Add(base, p.sqOff.array)), p.sqEntries)
		for i := range array {
			array[i] = uint32(i)
		}
	}
	return nil
}

// enter is io_uring_enter without waiting: it submits the entries up to sqTail and, with
// enterGetEvents, runs the task work that the kernel has deferred for this thread. It may still
// take long (a submission can wait for memory, or copy), so it is a Syscall and not a RawSyscall:
// the scheduler and the garbage collector must know.
func (r *rings) enter(submit, flags uint32) (int, unix.Errno) {
	n, _, errno := unix.Syscall6(unix.SYS_IO_URING_ENTER, uintptr(r.fd), uintptr(submit), 0,
		uintptr(flags), 0, 0)
	return int(n), errno
}

// submitRetries is how often, a millisecond apart, a submission is repeated for which the kernel
// had no memory.
const submitRetries = 20

// submit passes n entries, which sqTail includes, to the kernel. It returns how many it has taken;
// with an error, fewer than n.
func (r *rings) submit(n int) (taken int, errno unix.Errno) {
	for tries := 0; taken < n; {
		more, errno := r.enter(uint32(n-taken), 0)
		switch {
		case errno == 0 && more > 0:
			taken += more
		case errno == unix.EINTR:
		case (errno == 0 || errno == unix.EAGAIN || errno == unix.EBUSY) && tries < submitRetries:
			tries++
			time.Sleep(time.Millisecond)
		case errno == 0:
			return taken, unix.EAGAIN
		default:
			return taken, errno
		}
	}
	return taken, 0
}

// setEventFD makes the kernel signal eventFD for completions.
func (r *rings) setEventFD(eventFD int) unix.Errno {
	fd := int32(eventFD)
	_, _, errno := unix.Syscall6(unix.SYS_IO_URING_REGISTER, uintptr(r.fd), registerEventFD,
		uintptr(unsafe.Pointer(&fd)), 1, 0, 0)
	return errno
}

// enable starts a ring that was made with setupDisabled. With setupSingleIssuer the calling thread
// owns it from now on.
func (r *rings) enable() unix.Errno {
	_, _, errno := unix.Syscall6(unix.SYS_IO_URING_REGISTER, uintptr(r.fd), registerEnableRings, 0,
		0, 0, 0)
	return errno
}

func (r *rings) release() {
	if r.sqeMap != nil {
		unix.Munmap(r.sqeMap)
	}
	if r.mapping != nil {
		unix.Munmap(r.mapping)
	}
	unix.Close(r.fd)
}
