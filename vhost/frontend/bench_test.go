package frontend

import (
	"encoding/binary"
	"testing"

	"cowblk/internal/test"
)

// The speed of the driver: the back-end parses requests and returns OK.
func BenchmarkNull(b *testing.B) {
	for _, c := range []struct {
		name  string
		depth int
		o     Options
	}{
		{"QD1", 1, Options{Poll: true}},
		{"QD32", 32, Options{Poll: true}},
		{"QD32-direct", 32, Options{Poll: true, Refuse: FeatureIndirect}},
		{"QD32-blocking", 32, Options{}},
	} {
		b.Run(c.name, func(b *testing.B) {
			disk := newRAMDisk(diskSize)
			disk.null = true
			f, end := connect(b, disk, c.o)
			defer end()
			d := f.Driver(0)
			done := make([]Completion, 0, d.Slots())
			b.ReportAllocs()
			b.ResetTimer()
			for slot := range c.depth {
				_ = d.Submit(slot, OpRead, 0, 4096)
			}
			for n := 0; n < b.N; {
				test.Must(b, d.Kick())
				test.Must(b, d.Wait())
				done = d.Poll(done[:0])
				n += len(done)
				for _, x := range done {
					_ = d.Submit(x.ID, OpRead, 0, 4096)
				}
			}
			b.StopTimer()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "req/s")
		})
	}
}

// The cost of the driver alone: the device is a loop over the available ring in the same goroutine.
func BenchmarkDriver(b *testing.B) {
	for _, c := range []struct {
		name string
		o    Options
	}{{"indirect", Options{Poll: true}}, {"direct", Options{Poll: true, Refuse: FeatureIndirect}}} {
		b.Run(c.name, func(b *testing.B) {
			disk := newRAMDisk(diskSize)
			disk.ignoreRings = true
			f, end := connect(b, disk, c.o)
			defer end()
			d := f.Driver(0)
			r := d.Ring()
			done := make([]Completion, 0, d.Slots())
			for slot := range 32 {
				_ = d.Submit(slot, OpRead, 0, 4096)
			}
			seen := uint16(0)
			store(r.availEvent, 1<<15) // suppress kicks for a while
			b.ReportAllocs()
			b.ResetTimer()
			for n := 0; n < b.N; {
				_ = d.Kick()
				for avail := r.AvailIdx(); seen != avail; seen++ {
					head := binary.LittleEndian.Uint16(r.avail[4+2*int(seen&(r.Num-1)):])
					binary.LittleEndian.PutUint32(r.used[4+8*int(seen&(r.Num-1)):], uint32(head))
				}
				store(r.usedIdx, uint32(seen)<<16)
				store(r.availEvent, uint32(seen+1<<15))
				done = d.Poll(done[:0])
				n += len(done)
				for _, x := range done {
					_ = d.Submit(x.ID, OpRead, 0, 4096)
				}
			}
			b.StopTimer()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "req/s")
		})
	}
}
