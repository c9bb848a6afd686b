package cow_test

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"golang.org/x/sys/unix"

	"cowblk/cow"
	"cowblk/cow/cowtest"
	"cowblk/cow/vfs"
	"cowblk/internal/test"
)

const (
	benchSize  = 256 << 20 // bytes, small enough to stay in the page cache
	benchBlock = 4096
)

// benchStack returns a disk of some depth with every block owned by the oldest layer; the head owns
// nothing.
func benchStack(b *testing.B, depth int) *cowtest.Rig {
	b.Helper()
	rig, err := cowtest.NewRig(b.TempDir(), vfs.OS{}, cowtest.Shape{Size: benchSize,
		BlockSize: benchBlock})
	test.Must(b, err)
	b.Cleanup(func() { rig.Close() })
	chunk := fill('b', 1<<20)
	for off := int64(0); off < benchSize; off += int64(len(chunk)) {
		test.Must(b, test.Err(rig.Disk.WriteAt(chunk, off)))
	}
	for range depth {
		p, err := rig.Promote()
		test.Must(b, err)
		if <-p.Done(); p.Err() != nil {
			b.Fatal(p.Err())
		}
	}
	return rig
}

// BenchmarkRead, BenchmarkOverwrite and BenchmarkFirstWrite do random 4 KiB requests on one
// channel, one at a time, on stacks of several depths. BenchmarkFile is the reference: the same
// calls on a plain file.
func BenchmarkRead(b *testing.B) {
	benchDepths(b, func(b *testing.B, rig *cowtest.Rig) { benchRequests(b, rig, cow.OpRead) })
}

func BenchmarkOverwrite(b *testing.B) {
	benchDepths(b, func(b *testing.B, rig *cowtest.Rig) {
		chunk := fill('h', 1<<20)
		for off := int64(0); off < benchSize; off += int64(len(chunk)) {
			test.Must(b, test.Err(rig.Disk.WriteAt(chunk, off)))
		}
		test.Must(b, rig.Disk.Flush())
		benchRequests(b, rig, cow.OpWrite)
	})
}

func BenchmarkFirstWrite(b *testing.B) {
	benchDepths(b, func(b *testing.B, rig *cowtest.Rig) {
		ch := asyncChannel(b, rig.Disk)
		r := &cow.Request{Op: cow.OpWrite, Length: benchBlock,
			Data: [][]byte{make([]byte, benchBlock)}}
		out := make([]*cow.Request, 0, 1)
		order := rand.New(rand.NewPCG(1, 2)).Perm(benchSize / benchBlock)
		n := 0
		for b.Loop() {
			if n == len(order) { // everything is owned: a new head
				b.StopTimer()
				p, err := rig.Promote()
				test.Must(b, err)
				<-p.Done()
				n = 0
				b.StartTimer()
			}
			r.Offset = int64(order[n]) * benchBlock
			n++
			carryOut(b, ch, r, out)
		}
	})
}

// carryOut performs one request and polls for its completion.
func carryOut(b *testing.B, ch *cow.Channel, r *cow.Request, out []*cow.Request) {
	ch.Submit(r)
	for out = ch.Completed(out[:0]); len(out) == 0; out = ch.Completed(out[:0]) {
	}
	if r.Err != nil {
		b.Fatal(r.Err)
	}
}

func benchDepths(b *testing.B, f func(*testing.B, *cowtest.Rig)) {
	for _, depth := range []int{1, 8, 32, 128} {
		b.Run(fmt.Sprintf("depth=%d", depth), func(b *testing.B) { f(b, benchStack(b, depth)) })
	}
}

func benchRequests(b *testing.B, rig *cowtest.Rig, op cow.Op) {
	ch := asyncChannel(b, rig.Disk)
	r := &cow.Request{Op: op, Length: benchBlock, Data: [][]byte{make([]byte, benchBlock)}}
	out := make([]*cow.Request, 0, 1)
	rng := rand.New(rand.NewPCG(1, 2))
	b.ReportAllocs()
	for b.Loop() {
		r.Offset = rng.Int64N(benchSize/benchBlock) * benchBlock
		carryOut(b, ch, r, out)
	}
}

// BenchmarkReadBatch does random 4 KiB reads, eight at a time as a queue's worker does, into random
// pages of a buffer as large as a small guest's.
func BenchmarkReadBatch(b *testing.B) {
	const batch = 8
	rig := benchStack(b, 1)
	ch := asyncChannel(b, rig.Disk)
	guest := make([]byte, benchSize)
	rs, out := make([]*cow.Request, batch), make([]*cow.Request, 0, batch)
	for i := range rs {
		rs[i] = &cow.Request{Op: cow.OpRead, Length: benchBlock, Data: make([][]byte, 1)}
	}
	run := func(page func() int64) {
		for _, r := range rs {
			to := page() * benchBlock
			r.Offset, r.Data[0] = page()*benchBlock, guest[to:][:benchBlock]
		}
		ch.SubmitBatch(rs)
		for back := 0; back < batch; back += len(out) {
			out = ch.Completed(out[:0])
		}
	}
	next := int64(-1)
	for range 2 * benchSize / benchBlock / batch { // page tables, marks
		run(func() int64 { next++; return next / 2 % (benchSize / benchBlock) })
	}
	rng := rand.New(rand.NewPCG(1, 2))
	b.SetBytes(batch * benchBlock)
	b.ReportAllocs()
	for b.Loop() {
		run(func() int64 { return rng.Int64N(benchSize / benchBlock) })
	}
}

func BenchmarkFile(b *testing.B) {
	for _, op := range []string{"read", "overwrite"} {
		b.Run(op, func(b *testing.B) {
			rig := benchStack(b, 0)
			f, err := vfs.OS{}.OpenFile(rig.Spec.Layers[0].Data, unix.O_RDWR, 0)
			test.Must(b, err)
			defer f.Close()
			test.Must(b, f.AdviseRandom())
			buf := make([]byte, benchBlock)
			iov := []vfs.Iovec{{Base: &buf[0], Len: benchBlock}}
			rng := rand.New(rand.NewPCG(1, 2))
			for b.Loop() {
				off := rng.Int64N(benchSize/benchBlock) * benchBlock
				if op == "read" {
					_, err = f.Preadv(iov, off)
				} else {
					_, err = f.Pwritev(iov, off)
				}
				test.Must(b, err)
			}
		})
	}
}

// BenchmarkPromote measures the swap, without the creation of the new head's files and without the
// seal.
func BenchmarkPromote(b *testing.B) {
	rig, err := cowtest.NewRig(b.TempDir(), vfs.OS{}, cowtest.Shape{Size: benchSize,
		BlockSize: benchBlock})
	test.Must(b, err)
	defer rig.Close()
	for b.Loop() {
		b.StopTimer()
		next, err := rig.NextHead()
		test.Must(b, err)
		p, err := rig.Disk.Prepare(next)
		test.Must(b, err)
		b.StartTimer()
		test.Must(b, cow.Swap(p))
		b.StopTimer()
		<-p.Done()
		b.StartTimer()
	}
}

// BenchmarkFlush measures an overwrite and its flush: the cost for a guest that syncs each write.
func BenchmarkFlush(b *testing.B) {
	rig := benchStack(b, 0)
	ch := asyncChannel(b, rig.Disk)
	w := &cow.Request{Op: cow.OpWrite, Length: benchBlock, Data: [][]byte{make([]byte, benchBlock)}}
	flush := &cow.Request{Op: cow.OpFlush}
	out := make([]*cow.Request, 0, 1)
	carryOut(b, ch, flush, out)
	for b.Loop() {
		carryOut(b, ch, w, out)
		carryOut(b, ch, flush, out)
	}
}
