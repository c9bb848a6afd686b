package index

import (
	"fmt"
	"io"
	"math/rand/v2"
	"testing"

	"cowblk/internal/test"
)

// model is the simplest implementation of the index.
type model []Owner

func (m model) raise(first, n uint64, o Owner) {
	for b := first; b < first+n && b < uint64(len(m)); b++ {
		m[b] = max(m[b], o)
	}
}

func (m model) lookup(block, limit uint64) (Owner, uint64) {
	o, run := m[block], uint64(1)
	for run < limit && block+run < uint64(len(m)) && m[block+run] == o {
		run++
	}
	return o, run
}

// compare checks every block of x, run by run and block by block.
func (m model) compare(t *testing.T, x *Index) {
	t.Helper()
	n := uint64(len(m))
	for b := uint64(0); b < n; {
		o, run := x.Lookup(b, n)
		wantO, wantRun := m.lookup(b, n)
		if o != wantO || run != wantRun {
			t.Fatalf("Lookup(%d, %d): got owner %d run %d, want %d run %d", b, n, o, run, wantO,
				wantRun)
		}
		b += run
	}
	for b := range n {
		if o, run := x.Lookup(b, 1); o != m[b] || run != 1 {
			t.Fatalf("Lookup(%d, 1): got owner %d run %d, want %d run 1", b, o, run, m[b])
		}
	}
	compareGroups(t, x)
}

// compareGroups checks that groups agree with the numbers.
func compareGroups(t *testing.T, x *Index) {
	t.Helper()
	for page := range x.dir {
		e := entry(x.dir[page].Load())
		if !e.paged() || !e.grouped() {
			continue
		}
		s := x.groups(e)
		count := 0
		for g := range uint64(pageGroups) {
			n, run := e.kind().run(x.words(e), g*groupBlocks, groupBlocks)
			if run < groupBlocks || n >= mixed {
				n = mixed
				count++
			}
			if got := s.at(g); got != n {
				t.Fatalf("page %d, group %d: got %d, want %d", page, g, got, n)
			}
		}
		if got := s.mixed(); got != count {
			t.Fatalf("page %d: got %d mixed groups, want %d", page, got, count)
		}
	}
}

// bitmapSource is a layer's map in memory. If sparse is set, Next skips zero ranges.
type bitmapSource struct {
	words  []uint64
	sparse bool
}

func newBitmapSource(blocks uint64, sparse bool) *bitmapSource {
	return &bitmapSource{words: make([]uint64, (blocks+63)/64), sparse: sparse}
}

func (s *bitmapSource) set(first, n uint64) {
	for b := first; b < first+n && b < uint64(len(s.words))*64; b++ {
		s.words[b/64] |= 1 << (b % 64)
	}
}

func (s *bitmapSource) Words(dst []uint64, first uint64) error {
	clear(dst)
	if first < uint64(len(s.words)) {
		copy(dst, s.words[first:])
	}
	return nil
}

func (s *bitmapSource) Next(word uint64) (uint64, uint64, error) {
	n := uint64(len(s.words))
	if !s.sparse && word < n {
		return word, n, nil
	}
	for ; word < n; word++ {
		if s.words[word] != 0 {
			end := word
			for end < n && s.words[end] != 0 {
				end++
			}
			return word, end, nil
		}
	}
	return 0, 0, io.EOF
}

func TestRaiseAgainstModel(t *testing.T) {
	for _, blocks := range []uint64{1, 7, 8, 63, 4095, 4096, 4097, 3*4096 + 17, 64 * 4096} {
		for _, owners := range []int{1, 3, 60, 200, 300, 600} {
			t.Run(fmt.Sprintf("%d blocks %d owners", blocks, owners), func(t *testing.T) {
				rng := rand.New(rand.NewPCG(blocks, uint64(owners)))
				x, m := New(blocks), make(model, blocks)
				defer x.Close()
				for i := range 400 {
					first := rng.Uint64N(blocks)
					n := 1 + rng.Uint64N(1<<rng.Uint64N(15))
					if rng.IntN(4) == 0 {
						first = first / 4096 * 4096
						n = 4096 * (1 + rng.Uint64N(3))
					}
					o := Owner(rng.IntN(owners + 1))
					if rng.IntN(2) == 0 { // mostly rising, as in life
						o = Owner(1 + i*owners/400)
					}
					x.Raise(first, n, o)
					m.raise(first, n, o)
					for range 20 {
						b, limit := rng.Uint64N(blocks), 1+rng.Uint64N(10000)
						o, run := x.Lookup(b, limit)
						wantO, wantRun := m.lookup(b, limit)
						if o != wantO || run != wantRun {
							t.Fatalf(
								"after %d raises: Lookup(%d, %d): got owner %d run %d, want %d run %d", i+1, b, limit, o, run, wantO, wantRun)
						}
					}
				}
				m.compare(t, x)
			})
		}
	}
}

func TestBuildAgainstModel(t *testing.T) {
	for _, layers := range []int{0, 1, 2, 32, 63, 64, 255, 256, 600} {
		for _, blocks := range []uint64{1, 100, 4096, 40*4096 + 5, 70 * 4096} {
			for _, sparse := range []bool{false, true} {
				t.Run(fmt.Sprintf("%d layers %d blocks sparse %v", layers, blocks, sparse),
					func(t *testing.T) {
						rng := rand.New(rand.NewPCG(uint64(layers), blocks))
						m := make(model, blocks)
						sources := make([]Source, layers)
						for i := range sources {
							s := newBitmapSource(blocks, sparse)
							for range 1 + rng.IntN(8) {
								first, n := rng.Uint64N(blocks), 1+rng.Uint64N(1<<rng.Uint64N(14))
								if rng.IntN(3) == 0 {
									first = first / 4096 * 4096
									n = 4096
								}
								s.set(first, n)
								m.raise(first, n, Owner(i+1))
							}
							sources[i] = s
						}
						x, err := Build(blocks, sources)
						test.Must(t, err)
						defer x.Close()
						m.compare(t, x)

						// A built index behaves like a raised one.
						for i := range 100 {
							first, n := rng.Uint64N(blocks), 1+rng.Uint64N(200)
							o := Owner(layers + 1 + i*3)
							x.Raise(first, n, o)
							m.raise(first, n, o)
						}
						m.compare(t, x)
					})
			}
		}
	}
}
