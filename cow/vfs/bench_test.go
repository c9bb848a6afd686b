package vfs

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"cowblk/internal/test"
)

const (
	benchSize = 256 << 20 // bytes, small enough to stay in the page cache
	benchPage = 4096
)

func benchFile(b *testing.B) File {
	b.Helper()
	f, err := OS{}.OpenFile(filepath.Join(b.TempDir(), "f"), os.O_RDWR|os.O_CREATE, 0o600)
	test.Must(b, err)
	b.Cleanup(func() { f.Close() })
	chunk := make([]byte, 1<<20)
	for i := range chunk {
		chunk[i] = byte(i)
	}
	for off := int64(0); off < benchSize; off += int64(len(chunk)) {
		test.Must(b, test.Err(f.WriteAt(chunk, off)))
	}
	test.Must(b, f.Datasync())
	return f
}

// BenchmarkHotRead reads random pages of a file in the page cache into random pages of a buffer as
// large as a small guest's, by each of the available calls. BenchmarkHotRead/mmap, a plain copy, is
// the reference.
func BenchmarkHotRead(b *testing.B) {
	f := benchFile(b)
	guest := make([]byte, benchSize)
	for i := 0; i < len(guest); i += benchPage {
		guest[i] = 1
	}
	m, err := f.Map(benchSize, false)
	test.Must(b, err)
	defer m.Close()
	m.MarkResident(0, benchSize)
	mem, err := unix.Mmap(f.(*osFile).fd, 0, benchSize, unix.PROT_READ, unix.MAP_SHARED)
	test.Must(b, err)
	defer unix.Munmap(mem)
	iov := make([]Iovec, 1)
	ways := []struct {
		name string
		read func(p []byte, off int64)
	}{
		{"nothing", func(p []byte, off int64) {}},
		{"mmap", func(p []byte, off int64) { copy(p, mem[off:]) }},
		{"Copy", func(p []byte, off int64) {
			if ok := copyOf(m, p, off); !ok {
				m.MarkResident(off, int64(len(p)))
				b.ReportMetric(1, "misses")
			}
		}},
		{"PreadvNowait", func(p []byte, off int64) {
			iov[0].Base = &p[0]
			iov[0].SetLen(len(p))
			test.Must(b, test.Err(f.PreadvNowait(iov, off)))
		}},
		{"Preadv", func(p []byte, off int64) {
			iov[0].Base = &p[0]
			iov[0].SetLen(len(p))
			test.Must(b, test.Err(f.Preadv(iov, off)))
		}},
	}
	for _, size := range []int{4 << 10, 128 << 10} {
		for _, w := range ways {
			b.Run(w.name+"/"+sizeName(size), func(b *testing.B) {
				for off := int64(0); off < benchSize; off += int64(size) {
					w.read(guest[off:][:size], off) // page tables
				}
				rng := rand.New(rand.NewPCG(1, 2))
				n := int64(benchSize / size)
				b.SetBytes(int64(size))
				b.ReportAllocs()
				for b.Loop() {
					x := rng.Int64N(n) * int64(size)
					y := rng.Int64N(n) * int64(size)
					w.read(guest[y:][:size], x)
				}
			})
		}
	}
}

func sizeName(n int) string {
	if n == 4<<10 {
		return "4KiB"
	}
	return "128KiB"
}

// BenchmarkCopyOverhead is Copy of always the same byte: everything but the copying.
func BenchmarkCopyOverhead(b *testing.B) {
	f := benchFile(b)
	m, err := f.Map(benchSize, false)
	test.Must(b, err)
	defer m.Close()
	m.MarkResident(0, benchSize)
	p := make([]byte, 1)
	for b.Loop() {
		if ok := copyOf(m, p, 12345); !ok {
			b.Fatal("not resident")
		}
	}
}
