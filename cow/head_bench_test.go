package cow_test

import (
	"math/rand/v2"
	"runtime"
	"testing"

	"cowblk/cow"
	"cowblk/cow/cowtest"
	"cowblk/internal/test"
)

// BenchmarkReadOwned reads a disk of 256 MiB in the page cache whose blocks are owned in different
// ways: all by a sealed layer, which is the reference; by the head, written in order or in random
// order; every other block at random by the head; at random by 8 or 32 layers.
func BenchmarkReadOwned(b *testing.B) {
	const blocks = benchSize / benchBlock
	one := fill('o', benchBlock)
	writeSome := func(b *testing.B, rig *cowtest.Rig, every int) {
		for _, n := range rand.New(rand.NewPCG(3, 4)).Perm(blocks)[:blocks/every] {
			test.Must(b, test.Err(rig.Disk.WriteAt(one, int64(n)*benchBlock)))
		}
	}
	layers := func(n int) func(*testing.B) *cowtest.Rig {
		return func(b *testing.B) *cowtest.Rig {
			rig := benchStack(b, 1)
			rng := rand.New(rand.NewPCG(5, 6))
			for range n - 1 {
				for range blocks / n {
					test.Must(b, test.Err(rig.Disk.WriteAt(one, rng.Int64N(blocks)*benchBlock)))
				}
				p, err := rig.Promote()
				test.Must(b, err)
				<-p.Done()
			}
			return rig
		}
	}
	for _, c := range []struct {
		name  string
		stack func(b *testing.B) *cowtest.Rig
	}{
		{"sealed", func(b *testing.B) *cowtest.Rig { return benchStack(b, 1) }},
		{"head", func(b *testing.B) *cowtest.Rig { return benchStack(b, 0) }},
		{"head random", func(b *testing.B) *cowtest.Rig {
			rig := benchStack(b, 1)
			writeSome(b, rig, 1)
			return rig
		}},
		{"half", func(b *testing.B) *cowtest.Rig {
			rig := benchStack(b, 1)
			writeSome(b, rig, 2)
			return rig
		}},
		{"8 layers", layers(8)},
		{"32 layers", layers(32)},
	} {
		b.Run(c.name, func(b *testing.B) {
			rig := c.stack(b)
			ch := asyncChannel(b, rig.Disk)
			b.Run("random 4 KiB", func(b *testing.B) { benchReads(b, ch, benchBlock, true) })
			b.Run("sequential 128 KiB", func(b *testing.B) { benchReads(b, ch, 128<<10, false) })
		})
	}
}

func benchReads(b *testing.B, ch *cow.Channel, length int64, random bool) {
	r := &cow.Request{Op: cow.OpRead, Length: length, Data: [][]byte{make([]byte, length)}}
	out := make([]*cow.Request, 0, 1)
	for range 2 { // marks, page tables
		for r.Offset = 0; r.Offset < benchSize; r.Offset += length {
			carryOut(b, ch, r, out)
		}
	}
	rng, n := rand.New(rand.NewPCG(1, 2)), int64(0)
	b.SetBytes(length)
	b.ReportAllocs()
	for b.Loop() {
		n++
		if random {
			n = rng.Int64N(benchSize / length)
		}
		r.Offset = n % (benchSize / length) * length
		carryOut(b, ch, r, out)
	}
}

// BenchmarkFirstTouch reads each page of a cached layer once, in random order, on a disk that was
// just opened.
func BenchmarkFirstTouch(b *testing.B) {
	rig := benchStack(b, 1)
	const blocks = benchSize / benchBlock
	order := rand.New(rand.NewPCG(1, 2)).Perm(blocks)
	r := &cow.Request{Op: cow.OpRead, Length: benchBlock, Data: [][]byte{make([]byte, benchBlock)}}
	out := make([]*cow.Request, 0, 1)
	b.SetBytes(benchBlock)
	runtime.LockOSThread()
	var ch *cow.Channel
	for n := 0; b.Loop(); n++ {
		if n%blocks == 0 {
			b.StopTimer()
			if ch != nil {
				test.Must(b, ch.Close())
			}
			test.Must(b, rig.Reopen())
			var err error
			ch, err = rig.Disk.NewAsyncChannel()
			test.Must(b, err)
			b.StartTimer()
		}
		r.Offset = int64(order[n%blocks]) * benchBlock
		carryOut(b, ch, r, out)
	}
	test.Must(b, ch.Close())
}
