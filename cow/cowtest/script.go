package cowtest

import (
	"fmt"
	"math/rand/v2"
	"strings"

	"cowblk/cow"
)

// Op is one operation of a script.
type Op struct {
	Op     cow.Op
	Ranges []cow.Range // one for a read or write, none for a flush
	FUA    bool
}

// String formats an operation for failures: name, ranges as offset+length in bytes, "fua".
func (o Op) String() string {
	var b strings.Builder
	b.WriteString(o.Op.String())
	for _, r := range o.Ranges {
		fmt.Fprintf(&b, " %d+%d", r.Offset, r.Length)
	}
	if o.FUA {
		b.WriteString(" fua")
	}
	return b.String()
}

// Mix describes a script.
type Mix struct {
	Size      int64 // of the disk, bytes
	BlockSize int64 // bytes
	// FlushOneIn and FUAOneIn: one operation in this many is a flush or a write-through; 0: 200.
	FlushOneIn, FUAOneIn int
}

// Script makes n random operations. The same random source gives the same script, so that a seed is
// enough to repeat it.
func Script(rng *rand.Rand, mix Mix, n int) []Op {
	if mix.FlushOneIn == 0 {
		mix.FlushOneIn = 200
	}
	if mix.FUAOneIn == 0 {
		mix.FUAOneIn = 200
	}
	ops := make([]Op, n)
	for i := range ops {
		ops[i] = mix.op(rng)
	}
	return ops
}

func (m Mix) op(rng *rand.Rand) Op {
	if rng.IntN(m.FlushOneIn) == 0 {
		return Op{Op: cow.OpFlush}
	}
	o := Op{FUA: rng.IntN(m.FUAOneIn) == 0}
	switch k := rng.IntN(100); {
	case k < 45:
		o.Op, o.FUA = cow.OpRead, false
	case k < 86:
		o.Op = cow.OpWrite
	case k < 93:
		o.Op = cow.OpDiscard
	default:
		o.Op = cow.OpWriteZeroes
	}
	o.Ranges = []cow.Range{m.place(rng)}
	if o.Op == cow.OpDiscard || o.Op == cow.OpWriteZeroes {
		for rng.IntN(4) == 0 && len(o.Ranges) < 3 {
			o.Ranges = append(o.Ranges, m.place(rng))
		}
	}
	return o
}

// place returns a random range of sectors: mostly about a block long, sometimes many blocks, often
// with an edge on a block's or the disk's.
func (m Mix) place(rng *rand.Rand) cow.Range {
	sectors := m.Size / SectorSize
	perBlock := m.BlockSize / SectorSize
	n := 1 + rng.Int64N(2*perBlock+4)
	if rng.IntN(20) == 0 {
		n = 1 + rng.Int64N(max(20*perBlock, 256))
	}
	first := rng.Int64N(sectors)
	switch rng.IntN(4) {
	case 0: // whole blocks
		first -= first % perBlock
		n = (n + perBlock - 1) / perBlock * perBlock
	case 1: // starts on a block
		first -= first % perBlock
	case 2: // ends on a block
		if end := (first + n) / perBlock * perBlock; end > first {
			n = end - first
		}
	}
	if rng.IntN(50) == 0 {
		first = max(0, sectors-n)
	}
	n = min(n, sectors-first, MaxLength/SectorSize)
	return cow.Range{Offset: first * SectorSize, Length: n * SectorSize}
}

// MaxLength bounds one range of a script, in bytes.
const MaxLength = 512 << 10

// Effect returns the parts of o's ranges that change: a discard does not change edge blocks, unless
// the edge is the end of the disk.
func (o Op) Effect(size, blockSize int64) [][2]int64 {
	var out [][2]int64
	for _, r := range o.Ranges {
		from, to := r.Offset, r.Offset+r.Length
		if o.Op == cow.OpDiscard {
			from = (from + blockSize - 1) / blockSize * blockSize
			if to != size {
				to = to / blockSize * blockSize
			}
		}
		if from < to {
			out = append(out, [2]int64{from, to - from})
		}
	}
	return out
}
