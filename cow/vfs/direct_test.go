package vfs

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"cowblk/cow/pagecache"
	"cowblk/internal/test"
)

// openDirectly opens a file on a file system with direct I/O. It must not be in memory; the working
// directory is tried after TMPDIR.
func openDirectly(t *testing.T, size int) *directFile {
	t.Helper()
	for _, parent := range []string{"", "."} {
		dir, err := os.MkdirTemp(parent, "direct-test-")
		test.Must(t, err)
		t.Cleanup(func() { os.RemoveAll(dir) })
		f, err := OS{}.OpenFile(filepath.Join(dir, "f"), os.O_RDWR|os.O_CREATE|os.O_EXCL|Direct,
			0o600)
		if errors.Is(err, ErrNoDirect) {
			continue
		}
		test.Must(t, err)
		t.Cleanup(func() { f.Close() })
		if d, is := f.(*directFile); is {
			test.Must(t, d.Truncate(int64(size)))
			return d
		}
	}
	t.Fatal("neither the directory for temporary files nor this one has direct I/O: set TMPDIR to a directory on a disk")
	return nil
}

// pages returns memory aligned to a page.
func pages(t *testing.T, n int) []byte {
	t.Helper()
	mem, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	test.Must(t, err)
	t.Cleanup(func() { unix.Munmap(mem) })
	return mem
}

func TestDirectAlignment(t *testing.T) {
	d := openDirectly(t, 1<<20)
	d.memory, d.offset = 512, 512 // whatever the machine has: these suit it, too
	mem := pages(t, 1<<16)
	tests := []struct {
		name   string
		iov    []Iovec
		off    int64
		direct bool // without a bounce buffer
	}{
		{"aligned", vector(mem[:4096]), 8192, true},
		{"several pieces", vector(mem[512:][:4096], mem[8192:][:8192]), 4096, true},
		{"nothing", nil, 0, true},
		{"memory", vector(mem[1:][:4096]), 0, false},
		{"offset", vector(mem[:4096]), 100, false},
		{"length", vector(mem[:500]), 0, false},
		{"one of several pieces", vector(mem[:4096], mem[4096+8:][:4096]), 0, false},
		{"pieces that are whole together", vector(mem[:500], mem[500:][:524]), 0, false},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			if fd := d.AsyncFD(tc.iov, tc.off); (fd == d.dfd) != tc.direct || !tc.direct &&
				fd != -1 {
				t.Errorf("AsyncFD: got %d, want the direct descriptor: %v", fd, tc.direct)
			}
			if _, err := d.PreadvNowait(tc.iov, tc.off); tc.direct && err != ErrWouldBlock {
				t.Errorf("PreadvNowait: got %v, want ErrWouldBlock", err)
			}
			want := content(int(length(tc.iov)), byte(len(tc.name)))
			scatter(tc.iov, want)
			if n, err := d.Pwritev(tc.iov, tc.off); n != len(want) || err != nil {
				t.Fatalf("Pwritev: got %d, %v, want %d", n, err, len(want))
			}
			got := make([]byte, len(want))
			if _, err := d.ReadAt(got, tc.off); err != nil || !bytes.Equal(got, want) {
				t.Errorf("buffered read of what was written: %v, the same: %v", err,
					bytes.Equal(got, want))
			}
			scatter(tc.iov, make([]byte, len(want)))
			n, err := d.Preadv(tc.iov, tc.off)
			if gather(got, tc.iov); n != len(want) || err != nil || !bytes.Equal(got, want) {
				t.Errorf("Preadv: got %d, %v, or other bytes", n, err)
			}
		})
	}
}

// Direct and buffered reads and writes in any order see each other's content.
func TestDirectIsCoherent(t *testing.T) {
	const size = 64 << 10
	d := openDirectly(t, size)
	mem := pages(t, size)
	want := make([]byte, size)
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range 600 {
		off := rng.IntN(size/512) * 512
		n := (1 + rng.IntN((size-off)/512)) * 512
		if rng.IntN(2) == 0 { // whole pages
			off &^= 4095
			n = (n + 4095) &^ 4095
			n = min(n, size-off)
		}
		shift := 0
		if rng.IntN(4) == 0 && n < size {
			shift = 1 + rng.IntN(size-n) // memory at any address
		}
		p := mem[shift:][:n]
		switch rng.IntN(5) {
		case 0, 1:
			copy(p, content(n, byte(i)))
			copy(want[off:], p)
			if got, err := d.Pwritev(vector(p), int64(off)); got != n || err != nil {
				t.Fatalf("Pwritev of %d bytes at %d: got %d, %v", n, off, got, err)
			}
		case 2:
			copy(p, content(n, byte(i)))
			copy(want[off:], p)
			test.Must(t, test.Err(d.WriteAt(p, int64(off))))
		case 3:
			clear(want[off:][:n])
			test.Must(t, d.PunchHole(int64(off), int64(n)))
		case 4:
			test.Must(t, d.Datasync())
		}
		clear(mem)
		read := d.Preadv
		if rng.IntN(2) == 0 {
			read = d.osFile.Preadv
		}
		if got, err := read(vector(mem), 0); got != size || err != nil || !bytes.Equal(mem, want) {
			t.Fatalf("after step %d: read %d, %v, or other bytes", i, got, err)
		}
	}
}

// I/O that is unaligned in memory alone bypasses the cache, is short when it is long, and fails
// with an error when the memory is gone.
func TestDirectBounce(t *testing.T) {
	d := openDirectly(t, 4<<20)
	mem := pages(t, 2<<20)
	copy(mem[1:], content(len(mem)-1, 7))
	d.memory = 512
	long := mem[1:][:bounceSize+4096]
	want := bytes.Clone(long[:bounceSize])
	if n, err := d.Pwritev(vector(long), 0); n != bounceSize || err != nil {
		t.Errorf("long write: got %d, %v, want %d", n, err, bounceSize)
	}
	clear(long)
	if _, err := d.PreadvNowait(vector(long), 0); err != ErrWouldBlock {
		t.Errorf("PreadvNowait: got %v, want ErrWouldBlock", err)
	}
	if n, err := d.Preadv(vector(long), 0); n != bounceSize || err != nil ||
		!bytes.Equal(long[:bounceSize], want) {
		t.Errorf("long read: got %d, %v, want %d, or other bytes", n, err, bounceSize)
	}
	test.Equal(t, cachedPages(d.osFile), 0,
		"pages of what was written and read are in the page cache")
	test.Must(t, unix.Mprotect(mem[1<<20:], unix.PROT_NONE))
	gone := vector(mem[1<<20-100:][:4096])
	test.ErrorIs(t, test.Err(d.Pwritev(gone, 0)), unix.EFAULT, "write from memory that is gone")
	test.ErrorIs(t, test.Err(d.Preadv(gone, 0)), unix.EFAULT, "read to memory that is gone")
}

func TestDirectDoesNotAllocate(t *testing.T) {
	d := openDirectly(t, 1<<20)
	mem := pages(t, 8192)
	iov, shifted := vector(mem[:4096]), vector(mem[1:][:4096])
	d.memory = 512
	if n := testing.AllocsPerRun(20, func() {
		test.Check(t, test.Err(d.Pwritev(iov, 4096)))
		test.Check(t, test.Err(d.Preadv(iov, 4096)))
		test.Check(t, test.Err(d.Pwritev(shifted, 4096)))
		test.Check(t, test.Err(d.Preadv(shifted, 4096)))
		d.PreadvNowait(iov, 4096)
		d.AsyncFD(iov, 4096)
	}); n != 0 {
		t.Errorf("got %v allocations, want none", n)
	}
}

func TestDirectRefused(t *testing.T) {
	f, err := OS{}.OpenFile("/proc/version", os.O_RDONLY|Direct, 0)
	if err == nil {
		f.Close()
		t.Fatal("a file of /proc was opened for direct I/O")
	}
	var refused *DirectError
	if !errors.Is(err, ErrNoDirect) || !errors.As(err, &refused) ||
		refused.Path != "/proc/version" {
		t.Fatalf("got %v, want a DirectError", err)
	}
	test.Texts(t, "direct.texts")(t, "file of /proc", err)
}

func TestDirectOpens(t *testing.T) {
	d := openDirectly(t, 4096)
	if m, err := d.Map(4096, false); !errors.Is(err, pagecache.ErrNotMappable) {
		t.Errorf("Map: got %v, %v, want ErrNotMappable", m, err)
	}
	test.Must(t, d.Lock(true))
	test.ErrorIs(t, test.Err((OS{}).OpenFile(d.Name(), os.O_RDWR|os.O_CREATE|os.O_EXCL|Direct,
		0o600)), os.ErrExist, "O_EXCL on a file that exists")
	r, err := OS{}.OpenFile(d.Name(), os.O_RDONLY|Direct, 0)
	test.Must(t, err)
	test.ErrorIs(t, r.Lock(false), ErrLocked, "lock of a locked file")
	test.Must(t, r.Close())
}
