package layer

import (
	"math/rand/v2"
	"sync"
	"testing"

	"cowblk/internal/test"
)

func bitmap(t testing.TB, blocks uint64) *Bitmap {
	t.Helper()
	b, err := NewBitmap(blocks)
	test.Must(t, err)
	return b
}

func TestBitmapAgainstModel(t *testing.T) {
	for _, blocks := range []uint64{1, 63, 64, 65, blocksPerPage, 3*blocksPerPage + 7} {
		rng := rand.New(rand.NewPCG(1, blocks))
		b, model, stored := bitmap(t, blocks), make([]bool, blocks), make([]bool, blocks)
		for range 200 {
			first, n := rng.Uint64N(blocks+10), rng.Uint64N(200)
			if rng.IntN(20) == 0 {
				n = rng.Uint64N(2 * blocksPerPage)
			}
			b.Set(first, n)
			for i := first; i < min(first+n, blocks); i++ {
				model[i] = true
			}
			if rng.IntN(10) == 0 {
				apply(t, b.TakeDirty(nil), stored)
			}
		}
		apply(t, b.TakeDirty(nil), stored)
		count := uint64(0)
		for i, want := range model {
			if want {
				count++
			}
			if b.Test(uint64(i)) != want || stored[i] != want {
				t.Fatalf("%d blocks: block %d: in memory %v, taken %v, want %v", blocks, i,
					b.Test(uint64(i)), stored[i], want)
			}
		}
		if b.Count() != count {
			t.Errorf("%d blocks: Count: got %d, want %d", blocks, b.Count(), count)
		}
		if again := b.TakeDirty(nil); len(again) != 0 {
			t.Errorf("%d blocks: %d pages are dirty twice", blocks, len(again))
		}
		if b.Test(blocks) || b.Test(^uint64(0)) {
			t.Error("a block beyond the last is set")
		}
	}
}

// apply has the effect of writing the pages to the map.
func apply(t *testing.T, pages []DirtyPage, stored []bool) {
	t.Helper()
	for i, p := range pages {
		if i > 0 && p.Page <= pages[i-1].Page {
			t.Fatalf("page %d follows page %d", p.Page, pages[i-1].Page)
		}
		for w, word := range p.Words {
			for bit := range uint64(64) {
				block := p.Page*blocksPerPage + uint64(w)*64 + bit
				set := word>>bit&1 != 0
				if block >= uint64(len(stored)) {
					if set {
						t.Fatalf("a bit beyond the last block was taken: %d", block)
					}
					continue
				}
				if stored[block] && !set {
					t.Fatalf("the bit of block %d went back", block)
				}
				stored[block] = set
			}
		}
	}
}

// TakeDirty costs as much as there are dirty pages: here two, anywhere.
func TestTakeDirtyOfAHugeDisk(t *testing.T) {
	const blocks = 64 << 40 / 4096
	b := bitmap(t, blocks)
	b.Set(0, 1)
	b.Set(blocks-1, 1)
	pages := b.TakeDirty(nil)
	if len(pages) != 2 || pages[0].Page != 0 || pages[1].Page != blocks/blocksPerPage-1 ||
		pages[1].Words[wordsPerPage-1] != 1<<63 {
		t.Errorf("got %d pages", len(pages))
	}
	b.MarkDirty(pages[1:])
	if again := b.TakeDirty(pages[:0]); len(again) != 1 || again[0].Page != blocks/blocksPerPage-1 {
		t.Errorf("after MarkDirty: got %d pages, want the last", len(again))
	}
}

// A bit whose Set has returned is in the next TakeDirty or in an earlier one.
func TestSetAndTakeDirtyConcurrently(t *testing.T) {
	const blocks, writers, perWriter = 20 * blocksPerPage, 4, 5000
	b, stored := bitmap(t, blocks), make([]bool, blocks)
	var mu sync.Mutex // makes each take a moment that writers can name
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(3, uint64(w)))
			for i := range perWriter {
				first, n := rng.Uint64N(blocks-70), 1+rng.Uint64N(70)
				if i%2 == 0 {
					first = uint64(i) // where the others are too
				}
				b.Set(first, n)
				if i%50 != 0 {
					continue
				}
				mu.Lock()
				apply(t, b.TakeDirty(nil), stored)
				for k := first; k < first+n; k++ {
					if !stored[k] {
						t.Errorf("block %d was set and not taken", k)
					}
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	apply(t, b.TakeDirty(nil), stored)
	count := uint64(0)
	for i, s := range stored {
		if s != b.Test(uint64(i)) {
			t.Fatalf("block %d: taken %v, in memory %v", i, s, b.Test(uint64(i)))
		}
		if s {
			count++
		}
	}
	if count != b.Count() {
		t.Errorf("Count: got %d, want %d", b.Count(), count)
	}
}

func TestSetDoesNotAllocate(t *testing.T) {
	b := bitmap(t, 1<<28)
	i := uint64(0)
	if n := testing.AllocsPerRun(1000, func() { b.Set(i, 9); i += 100003 }); n != 0 {
		t.Errorf("got %v allocations, want none", n)
	}
}

func BenchmarkSet(bench *testing.B) {
	const blocks = 1 << 40 / 4096
	b := bitmap(bench, blocks)
	i := uint64(0)
	for bench.Loop() {
		b.Set(i%blocks, 1)
		i += 1000003
	}
}

// BenchmarkTakeDirty takes one dirty page of a disk of 1 TiB.
func BenchmarkTakeDirty(bench *testing.B) {
	const blocks = 1 << 40 / 4096
	b := bitmap(bench, blocks)
	pages := make([]DirtyPage, 0, 1)
	i := uint64(0)
	for bench.Loop() {
		b.Set(i%blocks, 1)
		pages = b.TakeDirty(pages[:0])
		i += 1000003
	}
}
