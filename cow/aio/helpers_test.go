package aio

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"cowblk/internal/test"
)

// variant is one way to make an engine.
type variant struct {
	name string
	make func(depth, eventFD int) (*Engine, error)
}

// variants returns each mode that this kernel has. It skips the test if there is none:
// TestEngineWhereTheKernelHasIOUring fails if one is expected.
func variants(t testing.TB) (all []variant) {
	t.Helper()
	for _, m := range modes {
		with := func(depth, eventFD int) (*Engine, error) { return newEngine(depth, eventFD, m) }
		e, err := with(1, 0)
		if errors.Is(err, errors.ErrUnsupported) {
			t.Logf("%s: %v", m.name, err)
			continue
		}
		test.Must(t, err)
		e.Close()
		all = append(all, variant{m.name, with})
	}
	if len(all) == 0 {
		t.Skip("io_uring is not available here")
	}
	return all
}

// rig is an engine under test with its eventfd, on a locked thread.
type rig struct {
	t  testing.TB
	e  *Engine
	fd int
}

// conform runs f once for each variant.
func conform(t *testing.T, depth int, f func(r *rig)) {
	for _, v := range variants(t) {
		t.Run(v.name, func(t *testing.T) { f(newRig(t, v, depth)) })
	}
}

func newRig(t testing.TB, v variant, depth int) *rig {
	t.Helper()
	runtime.LockOSThread() // ends with the goroutine, and the thread with it
	fd := eventFD(t)
	e, err := v.make(depth, fd)
	test.Must(t, err)
	t.Cleanup(func() {
		test.Check(t, e.Close(), "Close")
	})
	return &rig{t: t, e: e, fd: fd}
}

func eventFD(t testing.TB) int {
	t.Helper()
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	test.Must(t, err)
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

func (r *rig) start(id uint64, write bool, fd int, iov []unix.Iovec, off int64) {
	r.t.Helper()
	if !r.e.Start(id, write, fd, iov, off) {
		r.t.Fatalf("Start of %d: full, with %d in flight", id, r.e.InFlight())
	}
}

func (r *rig) submit() {
	r.t.Helper()
	test.Must(r.t, r.e.Submit())
}

// hangGuard bounds a wait that would otherwise never end, in milliseconds.
const hangGuard = 30_000

// wait reaps n completions as a user of the engine does: only the eventfd ends its sleep.
func (r *rig) wait(n int) map[uint64]Completion {
	r.t.Helper()
	got := make(map[uint64]Completion, n)
	var list []Completion
	for {
		list = r.e.Reap(list[:0])
		for _, c := range list {
			if _, twice := got[c.ID]; twice {
				r.t.Fatalf("completion %d came twice", c.ID)
			}
			got[c.ID] = c
		}
		if len(got) >= n {
			return got
		}
		if !r.signalled(hangGuard) {
			r.t.Fatalf("no signal, with %d of %d completions reaped", len(got), n)
		}
	}
}

// signalled waits for the eventfd and resets it.
func (r *rig) signalled(ms int) bool {
	for {
		fds := []unix.PollFd{{Fd: int32(r.fd), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, ms)
		if err == unix.EINTR {
			continue
		}
		var word [8]byte
		unix.Read(r.fd, word[:])
		return n == 1
	}
}

// transfer performs one operation.
func (r *rig) transfer(write bool, fd int, iov []unix.Iovec, off int64) Completion {
	r.t.Helper()
	const id = 1 << 63
	r.start(id, write, fd, iov, off)
	r.submit()
	return r.wait(1)[id]
}

// vec makes an iovec array of buffers.
func vec(bufs ...[]byte) []unix.Iovec {
	iov := make([]unix.Iovec, len(bufs))
	for i, b := range bufs {
		if len(b) > 0 {
			iov[i].Base = &b[0]
		}
		iov[i].SetLen(len(b))
	}
	return iov
}

// aligned returns memory for direct I/O, outside Go's heap.
func aligned(t testing.TB, n int) []byte {
	t.Helper()
	b, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	test.Must(t, err)
	t.Cleanup(func() { unix.Munmap(b) })
	return b
}

// pattern returns the content of a test file at off.
func pattern(off int64, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		o := off + int64(i)
		b[i] = byte(o ^ o>>8 ^ o>>16 ^ 0x5a)
	}
	return b
}

// place is a directory on one file system, and the flags to open files with.
type place struct {
	name string
	dir  string
	flag int
}

// places are the kinds of file that engines meet: in the page cache, with direct I/O, in memory,
// and opened as by package vfs.
func places(t testing.TB) []place {
	t.Helper()
	dir := t.TempDir()
	all := []place{{"file", dir, 0}, {"file, O_NONBLOCK", dir, unix.O_NONBLOCK}}
	probe := filepath.Join(dir, "probe")
	if fd, err := unix.Open(probe, unix.O_CREAT|unix.O_RDWR|unix.O_DIRECT|unix.O_CLOEXEC,
		0o600); err == nil {
		unix.Close(fd)
		all = append(all, place{"direct", dir, unix.O_DIRECT})
	} else {
		t.Logf("no direct I/O in %s: %v", dir, err)
	}
	if shm, err := os.MkdirTemp("/dev/shm", "aio-test-"); err == nil {
		t.Cleanup(func() { os.RemoveAll(shm) })
		all = append(all, place{"tmpfs", shm, 0}, place{"tmpfs, O_NONBLOCK", shm, unix.O_NONBLOCK})
	} else {
		t.Logf("no tmpfs: %v", err)
	}
	return all
}

// file makes a file of n bytes of pattern and opens it.
func (p place) file(t testing.TB, n int) int {
	t.Helper()
	f, err := os.CreateTemp(p.dir, "file-")
	test.Must(t, err)
	defer f.Close()
	test.Must(t, test.Err(f.Write(pattern(0, n))))
	fd, err := unix.Open(f.Name(), unix.O_RDWR|unix.O_CLOEXEC|p.flag, 0)
	test.Must(t, err)
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// chill drops a file's clean pages from memory.
func chill(t testing.TB, fd int) {
	t.Helper()
	unix.Fdatasync(fd)
	unix.Fadvise(fd, 0, 0, unix.FADV_DONTNEED)
}

func want(t testing.TB, what string, c Completion, n int, errno unix.Errno) {
	t.Helper()
	if c.N != n || c.Err != errno {
		t.Fatalf("%s: %d bytes, error %d (%v), expected %d bytes, error %d", what, c.N, int(c.Err),
			c.Err, n, int(errno))
	}
}

func wantPattern(t testing.TB, what string, b []byte, off int64) {
	t.Helper()
	if !bytes.Equal(b, pattern(off, len(b))) {
		t.Fatalf("%s: wrong content at byte %d", what, off)
	}
}
