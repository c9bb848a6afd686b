package blk

import (
	"testing"
	"time"

	"cowblk/vhost/virtq"
)

// usual is a chain as Linux builds it. restore makes it usable for another Parse, which trims it in
// place.
type usual struct {
	c                  virtq.Chain
	readable, writable [][]byte
}

func newUsual(typ uint32, data []byte, writable int) *usual {
	u := &usual{}
	u.readable = append([][]byte{header(typ, 8)}, split(data, 4096)...)
	if writable > 0 {
		u.writable = split(make([]byte, writable), 4096)
	}
	u.writable = append(u.writable, []byte{0xff})
	u.c.ReadLen, u.c.WriteLen = uint64(16+len(data)), uint64(writable+1)
	return u
}

func (u *usual) restore() *virtq.Chain {
	u.c.Readable = append(u.c.Readable[:0], u.readable...)
	u.c.Writable = append(u.c.Writable[:0], u.writable...)
	return &u.c
}

func usuals() map[string]*usual {
	return map[string]*usual{
		"read":    newUsual(TypeIn, nil, 4096),
		"write":   newUsual(TypeOut, make([]byte, 4096), 0),
		"flush":   newUsual(TypeFlush, nil, 0),
		"discard": newUsual(TypeDiscard, append(segment(1, 2, 0), segment(5, 6, 0)...), 0),
	}
}

func TestParseAndFinishDoNotAllocate(t *testing.T) {
	p := NewParser(testConfig(), 1<<64-1)
	for name, u := range usuals() {
		var r Request
		run := func() {
			if st, err := p.Parse(u.restore(), &r); st != StatusPending || err != nil {
				t.Fatal(name, st, err)
			}
			r.Finish(StatusOK)
		}
		run() // arrays grow once
		if n := testing.AllocsPerRun(200, run); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

func BenchmarkParse(b *testing.B) {
	p := NewParser(testConfig(), 1<<64-1)
	for name, u := range usuals() {
		b.Run(name, func(b *testing.B) {
			var r Request
			b.ReportAllocs()
			for b.Loop() {
				if st, err := p.Parse(u.restore(), &r); st != StatusPending || err != nil {
					b.Fatal(st, err)
				}
				r.Finish(StatusOK)
			}
			reportRatio(b)
		})
	}
}

// reportRatio reports the time of an operation as a multiple of a copy of 4 KiB, measured right
// after it on the same machine.
func reportRatio(b *testing.B) {
	perOp := float64(b.Elapsed()) / float64(b.N)
	src, dst := make([]byte, 4096), make([]byte, 4096)
	const n = 20000
	start := time.Now()
	for range n {
		copy(dst, src)
	}
	b.ReportMetric(perOp/(float64(time.Since(start))/n), "x-copy-4KiB")
}
