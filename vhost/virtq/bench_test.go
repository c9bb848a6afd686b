package virtq_test

import (
	"fmt"
	"testing"
	"time"

	"cowblk/internal/test"
	"cowblk/vhost/virtq"
)

// shapes of a 4 KiB read; the usual one has three descriptors.
func readRequest(i uint64) []virtq.Desc {
	at := dataAddr - 0x100000 + 0x2000*i
	return []virtq.Desc{readable(at, 16), writable(at+0x1000, 4096), writable(at+16, 1)}
}

// fill makes depth requests available once. Later rounds only move the driver's index, because the
// descriptors do not change.
func fill(t testing.TB, r *rig, depth int, indirect bool) (heads []uint16) {
	t.Helper()
	for i := range uint64(depth) {
		var head uint16
		var err error
		if indirect {
			head, err = r.drv.AddIndirect(tableAddr+64*i, readRequest(i)...)
		} else {
			head, err = r.drv.Add(readRequest(i)...)
		}
		test.Must(t, err)
		heads = append(heads, head)
	}
	// All entries of the ring, so that moving the index suffices.
	for i := range r.drv.Num {
		r.drv.SetAvail(i, heads[int(i)%depth])
	}
	return heads
}

func TestRequestPathDoesNotAllocate(t *testing.T) {
	for i := range 4 {
		indirect, num := i&1 != 0, uint16(i&2*64)
		r := newRig(t, virtq.SplitConfig{Num: 128, Indirect: indirect, EventIdx: indirect,
			Inflight: region(t, num), InflightNum: num})
		const depth = 32
		fill(t, r, depth, indirect)
		chains := make([]virtq.Chain, r.drv.Num)
		idx := uint16(0)
		run := func() {
			idx += depth
			r.drv.SetAvailIdx(idx)
			r.q.SuppressKicks()
			for range depth {
				head, ok, err := r.q.Next()
				if !ok || err != nil {
					t.Fatal(ok, err)
				}
				c := &chains[head]
				c.Head = head
				if err := r.q.Load(r.table, c); err != nil || len(c.Writable) != 2 {
					t.Fatal(len(c.Writable), err)
				}
				r.q.Push(head, uint32(c.WriteLen))
			}
			r.q.Publish()
			r.q.EnableKicks()
		}
		run() // arrays grow once
		if n := testing.AllocsPerRun(200, run); n != 0 {
			t.Errorf("indirect %v, tracked %v: %v allocations per batch of %d", indirect, num > 0,
				n, depth)
		}
	}
}

// reportRatio reports the time of an operation as a multiple of a copy of 4 KiB of guest memory,
// measured right after it on the same machine.
func reportRatio(b *testing.B, r *rig) {
	perOp := float64(b.Elapsed()) / float64(b.N)
	src, dst := r.mem.Bytes(dataAddr, 4096), make([]byte, 4096)
	const n = 20000
	start := time.Now()
	for range n {
		copy(dst, src)
	}
	b.ReportMetric(perOp/(float64(time.Since(start))/n), "x-copy-4KiB")
}

// BenchmarkRing measures the ring alone, without data. The driver's part is one store of its index
// per batch. Time is per request.
func BenchmarkRing(b *testing.B) {
	for i := range 4 {
		indirect, num := i&1 != 0, uint16(i&2*64)
		for _, depth := range []int{1, 32} {
			b.Run(fmt.Sprintf("indirect=%v/depth=%d/tracked=%v", indirect, depth, num > 0),
				func(b *testing.B) {
					r := newRig(b, virtq.SplitConfig{Num: 128, Indirect: true, EventIdx: true,
						Inflight: region(b, num), InflightNum: num})
					fill(b, r, depth, indirect)
					chains := make([]virtq.Chain, r.drv.Num)
					idx := uint16(0)
					b.ReportAllocs()
					b.ResetTimer()
					for done := 0; done < b.N; done += depth {
						idx += uint16(depth)
						r.drv.SetAvailIdx(idx)
						for {
							head, ok, err := r.q.Next()
							test.Must(b, err)
							if !ok {
								break
							}
							c := &chains[head]
							c.Head = head
							test.Must(b, r.q.Load(r.table, c))
							r.q.Push(head, 1)
						}
						r.q.Publish()
					}
					reportRatio(b, r)
				})
		}
	}
}

// BenchmarkStage measures each step by itself.
func BenchmarkStage(b *testing.B) {
	r := newRig(b, virtq.SplitConfig{Num: 128, EventIdx: true})
	heads := fill(b, r, 32, false)
	c := virtq.Chain{Head: heads[0]}
	b.Run("Load", func(b *testing.B) {
		for b.Loop() {
			test.Must(b, r.q.Load(r.table, &c))
		}
	})
	b.Run("NextPush", func(b *testing.B) {
		idx := r.q.Base()
		for i := 0; b.Loop(); i++ {
			if i%32 == 0 {
				idx += 32
				r.drv.SetAvailIdx(idx)
			}
			head, _, err := r.q.Next()
			test.Must(b, err)
			r.q.Push(head, 1)
		}
	})
	b.Run("Publish", func(b *testing.B) {
		for b.Loop() {
			r.q.Push(heads[0], 1)
			r.q.Publish()
		}
	})
	b.Run("EnableKicks", func(b *testing.B) {
		for b.Loop() {
			r.q.EnableKicks()
		}
	})
}
