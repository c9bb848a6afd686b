package vfs

import (
	"bytes"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"cowblk/cow/pagecache"
	"cowblk/internal/test"
)

// content returns n bytes of which no two pages are equal.
func content(n int, seed byte) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(i) ^ byte(i>>8) ^ byte(i>>16) ^ seed
	}
	return p
}

func filled(t *testing.T, name string, p []byte) *osFile {
	t.Helper()
	f := create(t, name).(*osFile)
	test.Must(t, test.Err(f.WriteAt(p, 0)))
	test.Must(t, f.Datasync())
	return f
}

// evict drops the file's clean, unmapped pages from the page cache, which takes several attempts
// when another CPU has just used them. A file in memory stays.
func evict(t *testing.T, f *osFile) {
	t.Helper()
	test.Eventually(t, "the pages leave the page cache", func() bool {
		test.Must(t, unix.Fadvise(f.fd, 0, 0, unix.FADV_DONTNEED))
		return f.memory || cachedPages(f) == 0
	})
}

// cachedPages returns the number of the file's pages in the page cache; 0 before Linux 6.5.
func cachedPages(f *osFile) uint64 {
	var c unix.Cachestat_t
	_ = unix.Cachestat(uint(f.fd), &unix.CachestatRange{}, &c, 0)
	return c.Cache
}

func TestPreadvNowait(t *testing.T) {
	want := content(100_000, 1)
	f := filled(t, filepath.Join(t.TempDir(), "f"), want)
	p := make([]byte, len(want)+10)
	if n, err := f.PreadvNowait(vector(p[:10], p[10:]), 0); n != len(want) || err != nil ||
		!bytes.Equal(p[:n], want) {
		t.Fatalf("cached: got %d, %v, want %d bytes of the file", n, err, len(want))
	}
	if n, err := f.PreadvNowait(vector(p), int64(len(want))); n != 0 || err != nil {
		t.Errorf("at the end of the file: got %d, %v", n, err)
	}
	if n, err := f.PreadvNowait(nil, 0); n != 0 || err != nil {
		t.Errorf("nothing: got %d, %v", n, err)
	}
	if _, err := f.PreadvNowait(vector(p), -1); err == nil || err == ErrWouldBlock {
		t.Errorf("at a negative offset: got %v, want EINVAL", err)
	}
	refused := false
	for i := 0; i < 500 && !refused && !f.memory; i++ { // the device may be faster than the call
		evict(t, f)
		n, err := f.PreadvNowait(vector(p), 0)
		refused = err == ErrWouldBlock
		if !refused && (err != nil || !bytes.Equal(p[:n], want[:n])) {
			t.Fatalf("evicted: got %d, %v, or other bytes", n, err)
		}
	}
	if !refused && !f.memory {
		t.Log("the device was faster than each of 500 calls: ErrWouldBlock was not seen")
	}
	if n, err := f.Preadv(vector(p), 0); n != len(want) || err != nil || !bytes.Equal(p[:n], want) {
		t.Errorf("Preadv afterwards: got %d, %v", n, err)
	}
}

// RWF_NOWAIT is tried once on a file system that does not have it.
func TestPreadvNowaitRefused(t *testing.T) {
	f, err := open("/proc/version", os.O_RDONLY, 0)
	test.Must(t, err)
	defer f.Close()
	p := make([]byte, 10)
	for range 2 {
		if n, err := f.PreadvNowait(vector(p), 0); err != ErrWouldBlock {
			t.Errorf("got %d, %v, want ErrWouldBlock", n, err)
		}
		if !f.nowaitRefused.Load() {
			t.Error("the refusal was not remembered")
		}
	}
}

func TestFileInMemory(t *testing.T) {
	dir, err := os.MkdirTemp("/dev/shm", "vfs")
	test.Must(t, err)
	defer os.RemoveAll(dir)
	want := content(10_000, 2)
	test.Must(t, os.WriteFile(filepath.Join(dir, "f"), want, 0o600))
	for _, flag := range []int{0, Direct} {
		f, err := OS{}.OpenFile(filepath.Join(dir, "f"), os.O_RDWR|flag, 0)
		test.Must(t, err)
		p := make([]byte, len(want))
		if n, err := f.PreadvNowait(vector(p), 0); n != len(p) || err != nil ||
			!bytes.Equal(p, want) {
			t.Errorf("flag %#x: PreadvNowait: got %d, %v", flag, n, err)
		}
		if fd := f.AsyncFD(vector(p), 0); fd != -1 {
			t.Errorf("flag %#x: AsyncFD: got %d, want -1", flag, fd)
		}
		m, err := f.Map(int64(len(want)), false)
		test.Must(t, err)
		m.MarkResident(0, int64(len(want)))
		clear(p)
		if ok := copyOf(m, p, 0); !ok || !bytes.Equal(p, want) {
			t.Errorf("flag %#x: Copy from a mapping does not work", flag)
		}
		test.Must(t, m.Close())
		test.Must(t, f.Close())
	}
}

func TestAsyncFD(t *testing.T) {
	f := filled(t, filepath.Join(t.TempDir(), "f"), content(5000, 3))
	fd := f.AsyncFD(vector(make([]byte, 10)), 3)
	if f.memory != (fd == -1) {
		t.Fatalf("got %d; the file is in memory: %v", fd, f.memory)
	}
	if fd == -1 {
		return
	}
	p := make([]byte, 1)
	if n, err := syscall.Pread(fd, p, 4999); n != 1 || err != nil {
		t.Errorf("a read of the descriptor: got %d, %v", n, err)
	}
}

func TestNowaitDoesNotAllocate(t *testing.T) {
	f := filled(t, filepath.Join(t.TempDir(), "f"), content(64<<10, 4))
	iov := vector(make([]byte, 4096))
	if n := testing.AllocsPerRun(100, func() {
		if _, err := f.PreadvNowait(iov, 4096); err != nil && err != ErrWouldBlock {
			t.Error(err)
		}
		f.AsyncFD(iov, 4096)
	}); n != 0 {
		t.Errorf("got %v allocations, want none", n)
	}
	refusing, err := open("/proc/version", os.O_RDONLY, 0)
	test.Must(t, err)
	defer refusing.Close()
	if n := testing.AllocsPerRun(100, func() { refusing.PreadvNowait(iov, 0) }); n != 0 {
		t.Errorf("refused: got %v allocations, want none", n)
	}
}

// copyOf copies len(p) bytes from off of a file that nothing truncates.
func copyOf(m *pagecache.Mapping, p []byte, off int64) bool {
	c := pagecache.BeginCopies()
	mem := c.Begin(m, off, int64(len(p)))
	if mem == nil {
		return false
	}
	copy(p, mem)
	ok, _ := c.End(off)
	return ok
}
