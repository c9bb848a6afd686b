package aio

import (
	"runtime"
	"runtime/debug"
	"sync"
	"testing"

	"cowblk/internal/test"
)

// No call of a warm engine allocates: with few and many iovecs, cached and direct.
func TestNoAllocation(t *testing.T) {
	for _, p := range places(t) {
		t.Run(p.name, func(t *testing.T) {
			conform(t, 32, func(r *rig) {
				fd := p.file(r.t, 64*page)
				mem := aligned(r.t, 32*page)
				short := make([][]byte, 1)
				long := make([][]byte, 0, 16)
				for i := range 16 {
					long = append(long, mem[i*page:][:page])
				}
				short[0] = mem[16*page:][:page]
				one, many := vec(short...), vec(long...)
				list := make([]Completion, 0, 32)
				round := func() {
					for i := range uint64(16) {
						if !r.e.Start(i, i&1 == 1, fd, one, int64(i)*page) {
							t.Error("full")
						}
					}
					r.e.Start(16, false, fd, many, 0)
					test.Check(t, r.e.Submit())
					for n := 0; n < 17; n += len(list) {
						list = r.e.Reap(list[:0])
						for _, c := range list {
							if c.Err != 0 {
								t.Error(c.Err)
							}
						}
						runtime.Gosched()
					}
				}
				for range 20 { // warm the engine
					round()
				}
				test.Equal(t, testing.AllocsPerRun(50, round), 0, "allocations a round")
			})
		})
	}
}

// The collector runs all the time while buffers on Go's heap are in flight, are reaped, dropped and
// allocated again: the engine's copies of their addresses must not matter.
func TestUnderGarbageCollection(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(1))
	for _, p := range places(t) {
		if p.name == "direct" {
			continue // needs aligned memory, which is not on Go's heap
		}
		t.Run(p.name, func(t *testing.T) {
			conform(t, 16, func(r *rig) {
				fd := p.file(r.t, 64*page)
				stop := make(chan struct{})
				var collector sync.WaitGroup
				collector.Go(func() {
					for {
						select {
						case <-stop:
							return
						default:
							runtime.GC()
						}
					}
				})
				defer collector.Wait()
				defer close(stop)
				bufs := make([][]byte, 16)
				for round := range 150 {
					if round%50 == 0 {
						chill(r.t, fd)
					}
					for i := range bufs {
						// Of many sizes, so that spans are freed and reused for other objects.
						bufs[i] = make([]byte, 512<<(round%8))
						r.start(uint64(i), false, fd, vec(bufs[i]), int64(i)*page)
					}
					r.submit()
					got := r.wait(len(bufs))
					for i, b := range bufs {
						want(r.t, "read", got[uint64(i)], len(b), 0)
						wantPattern(r.t, "read", b, int64(i)*page)
					}
				}
			})
		})
	}
}
