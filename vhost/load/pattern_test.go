package load

import (
	"testing"

	"cowblk/vhost/frontend"
)

// For any n, each number below it occurs once.
func TestPermutation(t *testing.T) {
	for _, n := range []uint64{1, 2, 3, 4, 5, 7, 8, 9, 255, 256, 257, 1000, 4096, 100_003} {
		for seed := range uint64(4) {
			p := newPermutation(n, seed)
			seen := make([]bool, n)
			inPlace := uint64(0)
			for i := range n {
				x := p.at(i)
				if x >= n || seen[x] {
					t.Fatalf("n %d, seed %d: number %d is %d, which is too large or comes twice", n,
						seed, i, x)
				}
				seen[x] = true
				if i > 0 && x == p.at(i-1)+1 {
					inPlace++
				}
			}
			if n > 1000 && inPlace > n/100 {
				t.Errorf("n %d, seed %d: %d numbers follow the one before them", n, seed, inPlace)
			}
		}
	}
	a, b := newPermutation(1000, 1), newPermutation(1000, 2)
	same := 0
	for i := range uint64(1000) {
		if a.at(i) == b.at(i) {
			same++
		}
	}
	if same > 20 {
		t.Errorf("two seeds agree on %d of 1000 places", same)
	}
}

// More than a terabyte: no table, and no endless walk.
func TestPermutationOfManyBlocks(t *testing.T) {
	n := uint64(3)<<38 + 1
	p := newPermutation(n, 7)
	for i := range uint64(10_000) {
		if x := p.at(i * (n / 10_000)); x >= n {
			t.Fatalf("%d is outside", x)
		}
	}
}

func TestRandomBelow(t *testing.T) {
	r := newRandom(1, 0)
	var hits [10]int
	for range 10_000 {
		hits[r.below(10)]++
	}
	for i, n := range hits {
		if n < 800 || n > 1200 {
			t.Errorf("%d came %d times of 10000", i, n)
		}
	}
	if a, b := newRandom(1, 0), newRandom(1, 1); a.next() == b.next() {
		t.Error("two streams of a seed begin alike")
	}
}

func takeAll(t *testing.T, o Options, blocks uint64, most int) (ops map[frontend.Op]int,
	offs [][]int64) {
	t.Helper()
	ops = map[frontend.Op]int{}
	for q := range o.Queues {
		p := newPattern(o, blocks, q)
		var mine []int64
		for range most {
			op, off, ok := p.take()
			if !ok {
				break
			}
			ops[op]++
			mine = append(mine, off)
			if off < o.Offset || off >= o.Offset+int64(blocks)*int64(o.BlockSize) ||
				(off-o.Offset)%int64(o.BlockSize) != 0 {
				t.Fatalf("offset %d", off)
			}
		}
		offs = append(offs, mine)
	}
	return ops, offs
}

// First writes touch each block once, in any order and with any number of queues.
func TestFirstWriteTouchesEachBlockOnce(t *testing.T) {
	for _, rw := range []string{RandWrite, Write} {
		for _, queues := range []int{1, 3, 8} {
			for _, blocks := range []uint64{8, 1000, 1001} {
				o := Options{RW: rw, FirstWrite: true, Queues: queues, BlockSize: 4096, Offset: 512}
				ops, offs := takeAll(t, o, blocks, 5000)
				seen := map[int64]bool{}
				for _, mine := range offs {
					for i, off := range mine {
						if seen[off] {
							t.Fatalf("%s, %d queues: %d is written twice", rw, queues, off)
						}
						seen[off] = true
						if rw == Write && i > 0 && off != mine[i-1]+4096 {
							t.Fatalf("%s: %d after %d", rw, off, mine[i-1])
						}
					}
				}
				if uint64(len(seen)) != blocks || ops[frontend.OpWrite] != int(blocks) {
					t.Errorf("%s, %d queues: %d of %d blocks", rw, queues, len(seen), blocks)
				}
			}
		}
	}
}

func TestSequentialBeginsAgain(t *testing.T) {
	_, offs := takeAll(t, Options{RW: Read, Queues: 2, BlockSize: 512}, 5, 7)
	want := [][]int64{{0, 512, 1024, 0, 512, 1024, 0}, {1536, 2048, 1536, 2048, 1536, 2048, 1536}}
	for q := range want {
		for i := range want[q] {
			if offs[q][i] != want[q][i] {
				t.Fatalf("queue %d: %v, expected %v", q, offs[q], want[q])
			}
		}
	}
}

func TestMix(t *testing.T) {
	for _, c := range []struct {
		rw            string
		percent       int
		least, atMost int // reads of 10,000
	}{
		{RandRead, 0, 10_000, 10_000}, {Read, 0, 10_000, 10_000}, {RandWrite, 0, 0, 0},
		{Write, 0, 0, 0},
		{RandRW, 70, 6700, 7300}, {RandRW, 1, 50, 160},
	} {
		ops, _ := takeAll(t, Options{RW: c.rw, ReadPercent: c.percent, Queues: 1, BlockSize: 512},
			1000, 10_000)
		if n := ops[frontend.OpRead]; n < c.least || n > c.atMost ||
			n+ops[frontend.OpWrite] != 10_000 {
			t.Errorf("%s: %d reads and %d writes", c.rw, n, ops[frontend.OpWrite])
		}
	}
}
