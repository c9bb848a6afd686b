package vfs

import (
	"runtime/debug"
	"sync"

	"golang.org/x/sys/unix"

	"cowblk/cow/invariants"
)

// bounceSize is the size of one bounced transfer in bytes; a longer one is short, as the interface
// allows.
const bounceSize = 256 << 10

// bouncePool has buffers for direct I/O of memory that is not aligned for it (two halves of a block
// around a guest's sector, say). They are mapped, hence page-aligned, and reused.
type bouncePool struct {
	mu   sync.Mutex
	free [][]byte
}

func (b *bouncePool) get() ([]byte, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if n := len(b.free); n > 0 {
		p := b.free[n-1]
		b.free = b.free[:n-1]
		return p, nil
	}
	return unix.Mmap(-1, 0, bounceSize, unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
}

func (b *bouncePool) put(p []byte) {
	invariants.Poison(p)
	b.mu.Lock()
	b.free = append(b.free, p)
	b.mu.Unlock()
}

func (b *bouncePool) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, p := range b.free {
		_ = unix.Munmap(p)
	}
	b.free = nil
}

// bounceable reports whether only the memory's alignment keeps this I/O from being direct.
func (d *directFile) bounceable(iov []Iovec, off int64) bool {
	return (uint64(off)|length(iov))&(uint64(d.offset)-1) == 0
}

func length(iov []Iovec) (n uint64) {
	for i := range iov[:min(len(iov), MaxIovecs)] {
		n += uint64(iov[i].Len)
	}
	return n
}

// writeBounced is Pwritev through an aligned copy. A buffered write instead, while direct writes of
// the same page are under way, would make the kernel report their fdatasync as failed (EIO: it
// could not invalidate the page).
func (d *directFile) writeBounced(iov []Iovec, off int64) (int, error) {
	p, err := d.bounces.get()
	if err != nil {
		return 0, d.fail("write", err)
	}
	defer d.bounces.put(p)
	n, errno := catchFault(func() int { return gather(p, iov) })
	if errno != 0 {
		return 0, d.fail("write", errno)
	}
	put, errno := vectored(unix.SYS_PWRITEV, d.dfd, oneIovec(p, n), off, 0)
	return d.result("write", put, errno)
}

// readBounced is Preadv through an aligned copy.
func (d *directFile) readBounced(iov []Iovec, off int64) (int, error) {
	p, err := d.bounces.get()
	if err != nil {
		return 0, d.fail("read", err)
	}
	defer d.bounces.put(p)
	got, errno := vectored(unix.SYS_PREADV, d.dfd, oneIovec(p, int(min(length(iov), bounceSize))),
		off, 0)
	if errno != 0 {
		return 0, d.fail("read", errno)
	}
	n, errno := catchFault(func() int { return scatter(iov, p[:got]) })
	return d.result("read", n, errno)
}

// oneIovec returns an iovec of the first n bytes of p, which is not empty.
func oneIovec(p []byte, n int) []Iovec {
	iov := []Iovec{{Base: &p[0]}}
	iov[0].SetLen(n)
	return iov
}

// catchFault runs a copy to or from the caller's memory. Memory of a guest may have lost its
// backing: the result is EFAULT, as in the kernel.
func catchFault(copying func() int) (n int, errno unix.Errno) {
	old := debug.SetPanicOnFault(true)
	defer func() {
		debug.SetPanicOnFault(old)
		if r := recover(); r != nil {
			if _, is := r.(interface{ Addr() uintptr }); !is {
				panic(r)
			}
			n, errno = 0, unix.EFAULT
		}
	}()
	return copying(), 0
}
