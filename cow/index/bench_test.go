package index

import (
	"fmt"
	"io"
	"math/bits"
	"testing"

	"cowblk/internal/test"
)

// hash is splitmix64: content for synthetic maps without memory.
func hash(v uint64) uint64 {
	v += 0x9e3779b97f4a7c15
	v = (v ^ v>>30) * 0xbf58476d1ce4e5b9
	v = (v ^ v>>27) * 0x94d049bb133111eb
	return v ^ v>>31
}

// scattered is a layer that owns about one block in 20, scattered over a whole disk: the worst case
// for every index. The pattern repeats, so that producing it costs no more than reading a cached
// file.
type scattered struct {
	words   uint64
	pattern [1 << 13]uint64
}

func newScattered(blocks, seed uint64) *scattered {
	s := &scattered{words: (blocks + 63) / 64}
	for i := range s.pattern {
		// 1/32 + 1/64 of the bits, nearly 5 %.
		a := hash(seed<<32 + uint64(i)*7)
		for k := range uint64(4) {
			a &= hash(seed<<32 + uint64(i)*7 + k + 1)
		}
		b := hash(seed<<32 + uint64(i)*7 + 5)
		s.pattern[i] = a | bits.RotateLeft64(a, 31)&b
	}
	return s
}

func (s *scattered) Words(dst []uint64, first uint64) error {
	for n := 0; n < len(dst); {
		n += copy(dst[n:], s.pattern[(first+uint64(n))%uint64(len(s.pattern)):])
	}
	return nil
}

func (s *scattered) Next(word uint64) (uint64, uint64, error) {
	if word >= s.words {
		return 0, 0, io.EOF
	}
	return word, s.words, nil
}

func scatteredStack(tb testing.TB, blocks uint64, layers int) *Index {
	tb.Helper()
	sources := make([]Source, layers)
	for i := range sources {
		sources[i] = newScattered(blocks, uint64(i+1))
	}
	x, err := Build(blocks, sources)
	test.Must(tb, err)
	return x
}

// BenchmarkLookup looks up single random blocks of 64 GiB, by depth of the stack.
func BenchmarkLookup(b *testing.B) {
	const blocks = 64 << 30 / 4096
	for _, depth := range []int{1, 8, 32, 128, 500} {
		b.Run(fmt.Sprintf("depth=%d", depth), func(b *testing.B) {
			x := scatteredStack(b, blocks, depth)
			defer x.Close()
			var sum Owner
			i := uint64(0)
			for b.Loop() {
				o, _ := x.Lookup(hash(i)%blocks, 1)
				sum += o
				i++
			}
			_ = sum
		})
	}
}

// BenchmarkLookupFlat is the reference for BenchmarkLookup: one byte per block in one array, the
// minimum of a lookup.
func BenchmarkLookupFlat(b *testing.B) {
	const blocks = 64 << 30 / 4096
	flat := make([]uint8, blocks)
	for i := range flat {
		flat[i] = uint8(i)
	}
	var sum uint8
	i := uint64(0)
	for b.Loop() {
		sum += flat[hash(i)%blocks]
		i++
	}
	_ = sum
}

// BenchmarkLookupHot is BenchmarkLookup with a working set of 64 MiB.
func BenchmarkLookupHot(b *testing.B) {
	const blocks, hot = 64 << 30 / 4096, 64 << 20 / 4096
	for _, depth := range []int{1, 32, 500} {
		b.Run(fmt.Sprintf("depth=%d", depth), func(b *testing.B) {
			x := scatteredStack(b, blocks, depth)
			defer x.Close()
			i := uint64(0)
			for b.Loop() {
				x.Lookup(hash(i)%hot, 1)
				i++
			}
		})
	}
}

// BenchmarkLookupExtents is BenchmarkLookupHot with layers that own extents of 64 KiB, one in 32 of
// a GiB.
func BenchmarkLookupExtents(b *testing.B) {
	const blocks = 1 << 30 / 4096
	for _, depth := range []int{1, 32, 128} {
		b.Run(fmt.Sprintf("depth=%d", depth), func(b *testing.B) {
			sources := make([]Source, depth)
			for i := range sources {
				sources[i] = newBitmapSource(blocks, true)
			}
			for i := range uint64(512) {
				sources[hash(i)%uint64(depth)].(*bitmapSource).set(i*512, 16)
			}
			x, err := Build(blocks, sources)
			test.Must(b, err)
			defer x.Close()
			i := uint64(0)
			for b.Loop() {
				x.Lookup(hash(i)%blocks, 1)
				i++
			}
		})
	}
}

// BenchmarkLookupRun looks up the run of a request of 1 MiB with one owner.
func BenchmarkLookupRun(b *testing.B) {
	const blocks = 16 << 30 / 4096
	x := New(blocks)
	defer x.Close()
	for p := uint64(0); p < blocks; p += pageBlocks {
		x.Raise(p, pageBlocks-1, 1)
	}
	i := uint64(0)
	for b.Loop() {
		x.Lookup(hash(i)%blocks/256*256, 256)
		i++
	}
}

// BenchmarkRaise raises single random blocks of a fresh head.
func BenchmarkRaise(b *testing.B) {
	const blocks = 64 << 30 / 4096
	x := scatteredStack(b, blocks, 8)
	defer x.Close()
	i := uint64(0)
	for b.Loop() {
		x.Raise(hash(i)%blocks, 1, 9)
		i++
	}
}

// BenchmarkBuild builds the index of 1 TiB from layers of 5 % in memory.
func BenchmarkBuild(b *testing.B) {
	const blocks = 1 << 40 / 4096
	for _, depth := range []int{1, 32} {
		b.Run(fmt.Sprintf("layers=%d", depth), func(b *testing.B) {
			sources := make([]Source, depth)
			for i := range sources {
				sources[i] = newScattered(blocks, uint64(i+1))
			}
			for b.Loop() {
				x, err := Build(blocks, sources)
				test.Must(b, err)
				b.ReportMetric(float64(x.Memory())/(1<<20), "MiB")
				x.Close()
			}
		})
	}
}
