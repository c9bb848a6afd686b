package layer

import (
	"math/rand/v2"
	"testing"
	"time"

	"cowblk/cow/vfs"
)

// BenchmarkOpenSealed opens, and so verifies, a sealed layer of 1 TiB that owns
// about 5 % of its blocks, one here and one there: its map has no page without
// a bit, 32 MiB in all.
func BenchmarkOpenSealed(b *testing.B) {
	p := paths(b)
	l := newHead(b, p, CreateParams{Size: 1 << 40})
	rng := rand.New(rand.NewPCG(1, 2))
	for block := uint64(0); block < l.Header().Blocks(); block += 1 + rng.Uint64N(39) {
		l.Bitmap().Set(block, 1)
	}
	must(b, l.Seal(time.Now()))
	must(b, l.Close())
	b.SetBytes(l.Header().MapSize())
	for b.Loop() {
		l, err := Open(vfs.OS{}, p, OpenParams{})
		must(b, err)
		must(b, l.Close())
	}
}
