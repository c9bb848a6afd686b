package layer

import (
	"math/rand/v2"
	"testing"
	"time"

	"cowblk/cow/vfs"
	"cowblk/internal/test"
)

// BenchmarkOpenSealed opens, and so verifies, a sealed layer of 1 TiB that owns about 5 % of its
// blocks, scattered: every page of its map has a bit, 32 MiB in all.
func BenchmarkOpenSealed(b *testing.B) {
	p, h := largeLayer(b)
	b.SetBytes(h.MapSize())
	for b.Loop() {
		l, err := Open(vfs.OS{}, p, OpenParams{})
		test.Must(b, err)
		test.Must(b, l.Close())
	}
}

// BenchmarkInspect inspects the same layer: everything but its data, and only as much as a fast
// check does of a layer that was closed in order.
func BenchmarkInspect(b *testing.B) {
	p, h := largeLayer(b)
	for name, o := range map[string]InspectParams{"map": {Map: true}, "fast": {}} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(h.MapSize())
			for b.Loop() {
				found, err := Inspect(vfs.OS{}, p, o)
				test.Must(b, err)
				if len(found.Findings) > 0 {
					b.Fatal(found.Findings)
				}
			}
		})
	}
}

func largeLayer(b *testing.B) (Paths, Header) {
	p := paths(b)
	l := newHead(b, p, CreateParams{Size: 1 << 40})
	rng := rand.New(rand.NewPCG(1, 2))
	for block := uint64(0); block < l.Header().Blocks(); block += 1 + rng.Uint64N(39) {
		l.Bitmap().Set(block, 1)
	}
	test.Must(b, l.Seal(time.Now()))
	test.Must(b, l.Close())
	return p, l.Header()
}
