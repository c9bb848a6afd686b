package aio

import (
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cowblk/internal/test"
)

// The benchmarks report, besides their own time, the ratio to plain preadv in the same run, taken
// in turns: "x-preadv" 2.0 is twice as many reads in the same time.

func BenchmarkHotQD1(b *testing.B)     { benchModes(b, 1, 0, 64<<20) }
func BenchmarkHotQD32(b *testing.B)    { benchModes(b, 32, 0, 64<<20) }
func BenchmarkDirectQD1(b *testing.B)  { benchModes(b, 1, unix.O_DIRECT, 256<<20) }
func BenchmarkDirectQD32(b *testing.B) { benchModes(b, 32, unix.O_DIRECT, 256<<20) }

func benchModes(b *testing.B, depth, flag int, size int64) {
	fd := benchFile(b, flag, size)
	for _, v := range variants(b) {
		b.Run(v.name, func(b *testing.B) {
			r := newRig(b, v, depth)
			d := &reader{e: r.e, rig: r, fd: fd, blocks: size / page, mem: aligned(b, depth*page),
				depth: depth}
			d.run(4 * depth)
			b.ResetTimer()
			var engine, plain time.Duration
			const turns = 10
			for i := range turns {
				n := (b.N + i) / turns // b.N in all
				began := time.Now()
				b.StartTimer()
				d.run(n)
				b.StopTimer()
				engine += time.Since(began)
				began = time.Now()
				d.plain(n)
				plain += time.Since(began)
			}
			b.ReportMetric(float64(plain)/float64(engine), "x-preadv")
		})
	}
}

// reader reads random blocks, depth of them at once.
type reader struct {
	rig    *rig
	e      *Engine
	fd     int
	blocks int64
	mem    []byte
	depth  int
	seed   uint64
	list   []Completion
}

// block returns the next block to read, from one simple generator for all.
func (d *reader) block() int64 {
	d.seed = d.seed*6364136223846793005 + 1442695040888963407
	return int64(d.seed>>33) % d.blocks
}

func (d *reader) run(n int) {
	free := make([]uint64, d.depth)
	iovs := make([][]unix.Iovec, d.depth)
	for i := range free {
		free[i] = uint64(i)
		iovs[i] = vec(d.mem[i*page:][:page])
	}
	for started, done := 0, 0; done < n; {
		for ; len(free) > 0 && started < n; started++ {
			i := free[len(free)-1]
			free = free[:len(free)-1]
			d.rig.start(i, false, d.fd, iovs[i], d.block()*page)
		}
		d.rig.submit()
		d.list = d.e.Reap(d.list[:0])
		if len(d.list) == 0 {
			d.rig.signalled(hangGuard)
			continue
		}
		for _, c := range d.list {
			if c.N != page {
				d.rig.t.Fatalf("read of %d bytes: %v", c.N, c.Err)
			}
			free = append(free, c.ID)
		}
		done += len(d.list)
	}
}

func (d *reader) plain(n int) {
	iovs := [][]byte{d.mem[:page]}
	for range n {
		if n, err := unix.Preadv(d.fd, iovs, d.block()*page); n != page {
			d.rig.t.Fatalf("preadv of %d bytes: %v", n, err)
		}
	}
}

func benchFile(b *testing.B, flag int, size int64) int {
	b.Helper()
	name := filepath.Join(b.TempDir(), "file")
	f, err := os.Create(name)
	test.Must(b, err)
	defer f.Close()
	chunk := make([]byte, 1<<20)
	for i := range chunk {
		chunk[i] = byte(i)
	}
	for off := int64(0); off < size; off += int64(len(chunk)) {
		test.Must(b, test.Err(f.Write(chunk)))
	}
	test.Must(b, f.Sync())
	fd, err := unix.Open(name, unix.O_RDONLY|unix.O_CLOEXEC|flag, 0)
	test.Must(b, err)
	b.Cleanup(func() { unix.Close(fd) })
	return fd
}

// The engine's own cost: queued, refused by the kernel at once, reaped.
func BenchmarkOverhead(b *testing.B) {
	for _, v := range variants(b) {
		b.Run(v.name, func(b *testing.B) {
			runtime.LockOSThread()
			r := newRig(b, v, 32)
			null, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
			test.Must(b, err)
			defer unix.Close(null)
			iov := vec(make([]byte, page))
			var list []Completion
			b.ReportAllocs()
			b.ResetTimer()
			for done := 0; done < b.N; done += len(list) {
				for i := uint64(0); r.e.Start(i, false, null, iov, 0); i++ {
				}
				r.submit()
				if list = r.e.Reap(list[:0]); len(list) == 0 {
					r.signalled(hangGuard)
				}
			}
		})
	}
}
