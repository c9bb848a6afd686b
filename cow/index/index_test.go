package index

import (
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"cowblk/internal/test"
)

func TestBeyondTheLastBlock(t *testing.T) {
	x := New(10)
	defer x.Close()
	x.Raise(5, ^uint64(0), 3)
	x.Raise(10, 5, 9)
	if o, run := x.Lookup(8, 100); o != 3 || run != 2 {
		t.Errorf("Lookup(8, 100): got owner %d run %d, want 3 and 2", o, run)
	}
	if o, run := x.Lookup(10, 7); o != 0 || run != 7 {
		t.Errorf("Lookup(10, 7): got owner %d run %d, want 0 and 7", o, run)
	}
}

func TestFoldAndReuse(t *testing.T) {
	x := New(2 * pageBlocks)
	defer x.Close()
	for o := Owner(1); o <= 200; o++ {
		x.Raise(100, 1, o)          // unfolds
		x.Raise(0, pageBlocks, o)   // folds
		x.Raise(pageBlocks, 500, o) // stays a page
		if e := entry(x.dir[0].Load()); e.paged() {
			t.Fatalf("owner %d: a page of one owner is not folded", o)
		}
	}
	for i := uint64(0); i < pageBlocks; i += 32 { // a sequential writer
		x.Raise(pageBlocks+i, 32, 201)
	}
	if e := entry(x.dir[1].Load()); e.paged() || e.owner() != 201 {
		t.Errorf("a page filled by sequential writes is not folded")
	}
	// The second page has become narrow at its 64th owner.
	if got, want := x.arena.next, 3*groupUnits+2*unitsOf(forms[tight].words)+
		unitsOf(forms[narrow].words); got != want {
		t.Errorf("200 rounds of fold and unfold: got %d units, want %d", got, want)
	}
}

func TestWideningKeepsOwners(t *testing.T) {
	x, m := New(pageBlocks), make(model, pageBlocks)
	defer x.Close()
	for o := 1; o <= 600; o++ {
		x.Raise(uint64(o*5), 3, Owner(o))
		m.raise(uint64(o*5), 3, Owner(o))
		want := wide
		switch {
		case o <= 63:
			want = tight
		case o <= 255:
			want = narrow
		}
		if k := entry(x.dir[0].Load()).kind(); k != want {
			t.Fatalf("a page of %d owners: got form %d, want %d", o, k, want)
		}
	}
	m.compare(t, x)
}

// A write of an old view may complete after the first of a new view.
func TestOlderWriteFits(t *testing.T) {
	x := New(pageBlocks)
	defer x.Close()
	x.Raise(0, 1, 300)
	x.Raise(5, 1, 299)
	test.Equal(t, entry(x.dir[0].Load()).kind(), tight,
		"a write one layer below made the page one of form")
	x.Raise(6, 1, 2)
	for b, want := range map[uint64]Owner{0: 300, 5: 299, 6: 2, 7: 0} {
		if o, _ := x.Lookup(b, 1); o != want {
			t.Errorf("block %d: got owner %d, want %d", b, o, want)
		}
	}
}

func TestMemory(t *testing.T) {
	clone := New(50 << 30 / 4096)
	defer clone.Close()
	if m := clone.Memory(); m >= 1<<20 {
		t.Errorf("fresh clone of 50 GiB: got %d bytes, want less than 1 MiB", m)
	}
	blocks := uint64(1 << 30 / 4096)
	every := newBitmapSource(blocks, false)
	for b := uint64(0); b < blocks; b += 2 {
		every.set(b, 1)
	}
	x, err := Build(blocks, []Source{every})
	test.Must(t, err)
	defer x.Close()
	// 52 units a page, 8 bytes a page for the directory, the table of slabs.
	if m, want := x.Memory(), int64(blocks)/pageBlocks*(52*unitBytes+8)+100; m > want {
		t.Errorf("worst case of 1 GiB: got %d bytes, want at most %d", m, want)
	}
}

// A page keeps its groups while most of them have a number.
func TestGroups(t *testing.T) {
	x, m := New(pageBlocks), make(model, pageBlocks)
	defer x.Close()
	grouped := func() bool { return entry(x.dir[0].Load()).grouped() }
	raise := func(first, n uint64, o Owner) {
		x.Raise(first, n, o)
		m.raise(first, n, o)
		m.compare(t, x)
	}
	raise(0, 3000, 1)    // one group of two owners
	raise(1000, 1500, 2) // large: whole groups and parts of two
	for g := range uint64(maxMixed - 3) {
		raise(g*groupBlocks+3, 1, 3)
	}
	if !grouped() {
		t.Fatalf("no groups with %d of %d mixed", maxMixed, pageGroups)
	}
	for g := range uint64(10) {
		raise(g*groupBlocks, groupBlocks, 4) // one number again
	}
	raise(2700, 1, 4)
	if !grouped() {
		t.Fatal("no groups with fewer mixed than before")
	}
	for g := range uint64(10) {
		raise((200+g)*groupBlocks, 1, 5)
	}
	if grouped() {
		t.Error("groups stay with more mixed ones than are worth it")
	}
	raise(0, pageBlocks, 6) // folds
	raise(5, 1, 7)          // and unfolds
	for o := Owner(8); o < 300; o++ {
		raise(uint64(o), 2, o) // and widens
	}
}

// Lookups of several groups while one is mixed and gets a number again.
func TestLookupWhileGroupsChange(t *testing.T) {
	x := New(pageBlocks)
	defer x.Close()
	x.Raise(0, 1, 1)
	var begun atomic.Uint32 // the newest owner
	begun.Store(1)
	var wg sync.WaitGroup
	wg.Go(func() {
		for o := Owner(2); o < 60; o++ {
			begun.Store(uint32(o))
			for range 2000 {
				x.Raise(0, 8, o)
				x.Raise(8, 8, o)
			}
			for at := uint64(32); at < 64*groupBlocks; at += groupBlocks / 2 {
				x.Raise(at, groupBlocks/2, o)
			}
		}
		begun.Store(1000)
	})
	for at := uint64(0); ; at = (at + groupBlocks) % (64 * groupBlocks) {
		o, run := x.Lookup(at, 3*groupBlocks)
		limit := begun.Load()
		if limit == 1000 {
			break
		}
		if uint32(o) > limit || run == 0 || run > 3*groupBlocks {
			t.Errorf("block %d: got owner %d run %d, %d was the newest", at, o, run, limit)
			break
		}
	}
	wg.Wait()
}

type failingSource struct {
	bitmapSource
	err error
}

func (s *failingSource) Words([]uint64, uint64) error { return s.err }

func TestBuildPassesErrorsOn(t *testing.T) {
	want := errors.New("cannot read")
	test.ErrorIs(t, test.Err(Build(1000, []Source{&failingSource{*newBitmapSource(1000, false),
		want}})), want)
	if _, err := Build(1000, make([]Source, 1<<16)); err == nil {
		t.Error("65,536 layers were accepted")
	}
}

// A bit beyond the last block must not reach the index, even if the caller did not check.
func TestBuildIgnoresBitsBeyondTheEnd(t *testing.T) {
	s := &bitmapSource{words: []uint64{^uint64(0), ^uint64(0)}}
	x, err := Build(70, []Source{s})
	test.Must(t, err)
	defer x.Close()
	if o, run := x.Lookup(0, 1000); o != 1 || run != 70 {
		t.Errorf("got owner %d run %d, want 1 and 70", o, run)
	}
}

// Owners only rise, and a lookup that begins after a Raise has returned sees at least its owner.
// Writers raise overlapping ranges through fold, unfold and widening while readers check both.
func TestConcurrentRaiseAndLookup(t *testing.T) {
	const blocks = 5*pageBlocks + 100
	const writers, perWriter, lastOwner = 4, 3000, 600
	x := New(blocks)
	defer x.Close()

	var returned [blocks]atomic.Uint32 // newest owner of a Raise that returned
	var stop atomic.Bool
	var readers, writing sync.WaitGroup
	for r := range 3 {
		readers.Go(func() {
			rng := rand.New(rand.NewPCG(7, uint64(r)))
			seen := make([]Owner, blocks)
			for !stop.Load() {
				b := rng.Uint64N(blocks)
				n := min(1+rng.Uint64N(6000), blocks-b)
				least := make([]Owner, n)
				for i := range least {
					least[i] = max(seen[b+uint64(i)], Owner(returned[b+uint64(i)].Load()))
				}
				o, run := x.Lookup(b, n)
				if run < 1 || run > n || o > lastOwner {
					t.Errorf("Lookup(%d, %d): impossible answer: owner %d run %d", b, n, o, run)
					return
				}
				for i := range run {
					if o < least[i] {
						t.Errorf("block %d: owner fell from %d to %d", b+i, least[i], o)
						return
					}
					seen[b+i] = o
				}
			}
		})
	}
	for w := range writers {
		writing.Go(func() {
			rng := rand.New(rand.NewPCG(11, uint64(w)))
			for i := range perWriter {
				o := Owner(1 + i*(lastOwner-1)/perWriter)
				first, n := rng.Uint64N(blocks), 1+rng.Uint64N(64)
				switch rng.IntN(20) {
				case 0, 1:
					first, n = first/pageBlocks*pageBlocks, pageBlocks
				case 2:
					n = 9000
				}
				n = min(n, blocks-first)
				x.Raise(first, n, o)
				for b := first; b < first+n; b++ {
					for {
						old := returned[b].Load()
						if old >= uint32(o) || returned[b].CompareAndSwap(old, uint32(o)) {
							break
						}
					}
				}
			}
		})
	}
	writing.Wait()
	stop.Store(true)
	readers.Wait()
	for b := range uint64(blocks) {
		if o, _ := x.Lookup(b, 1); uint32(o) != returned[b].Load() {
			t.Fatalf("block %d: got owner %d in the end, want %d", b, o, returned[b].Load())
		}
	}
}

func TestLookupDoesNotAllocate(t *testing.T) {
	x := New(1 << 20)
	defer x.Close()
	x.Raise(5000, 100, 1)
	b := uint64(0)
	step := func() { x.Lookup(b%(1<<20), 256); x.Raise(b%(1<<20), 3, 2); b += 7919 }
	for range 4096 { // pages, and what invariants keep of each lock
		step()
	}
	if n := testing.AllocsPerRun(1000, step); n != 0 {
		t.Errorf("got %v allocations per lookup and raise, want none", n)
	}
}

// FuzzIndex interprets its input as raises and lookups, and compares with the model.
func FuzzIndex(f *testing.F) {
	f.Add([]byte{0, 0, 10, 1, 0, 16, 0, 2, 1, 5})
	f.Add([]byte{255, 255, 255, 255, 3, 0, 0, 255, 255, 2})
	f.Fuzz(func(t *testing.T, ops []byte) {
		const blocks = 2*pageBlocks + 77
		x, m := New(blocks), make(model, blocks)
		defer x.Close()
		for ; len(ops) >= 6; ops = ops[6:] {
			first := (uint64(ops[0])<<8 | uint64(ops[1])) % blocks
			n := uint64(ops[2])<<8 | uint64(ops[3])
			o := Owner(ops[4])<<8 | Owner(ops[5])
			if n&1 == 0 {
				x.Raise(first, n/2, o)
				m.raise(first, n/2, o)
				continue
			}
			gotO, gotRun := x.Lookup(first, n)
			if o, run := m.lookup(first, n); o != gotO || run != gotRun {
				t.Fatalf("Lookup(%d, %d): got owner %d run %d, want %d run %d", first, n, gotO,
					gotRun, o, run)
			}
		}
		m.compare(t, x)
	})
}

var _ Source = (*bitmapSource)(nil)
