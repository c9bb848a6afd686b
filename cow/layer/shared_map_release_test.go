package layer

import (
	"math/rand/v2"
	"path/filepath"
	"sync"
	"testing"
)

// Pages of a shared map are freed and reserved again while bits are set in them: the next process
// finds every acknowledged bit, durable or not. More pages are used than keep their memory, so that
// every round's flushes free some.
func TestReleaseBesideAdd(t *testing.T) {
	const (
		pages, adders, adds, lives = 2 * maxKeptPages, 4, 1500, 12
		size                       = pages * blocksPerPage * DefaultBlockSize
	)
	dir, files := sharedDir(t), sharedDir(t)
	p := Paths{Map: filepath.Join(files, "map"), Data: filepath.Join(files, "data")}
	must(t, newHead(t, p, CreateParams{Size: size}).Close())
	acked := map[uint64]bool{}
	released := uint64(0)
	for life := range uint64(lives) {
		l := openHead(t, p, dir)
		for block := range acked {
			if !l.Bitmap().Test(block) {
				t.Fatalf("life %d: block %d was acknowledged, and is not there", life, block)
			}
		}
		if n := l.Bitmap().Count(); n != uint64(len(acked)) {
			t.Fatalf("life %d: expected %d blocks, found %d", life, len(acked), n)
		}
		var added [adders][]uint64
		var wg sync.WaitGroup
		for i := range added {
			rng := rand.New(rand.NewPCG(life, uint64(i)))
			wg.Go(func() {
				for range adds {
					// Few bits per page, so that many pages are not dirty.
					block := rng.Uint64N(pages)*blocksPerPage + rng.Uint64N(64)*500
					if _, kept := l.Bitmap().Add(block, 1); !kept {
						t.Errorf("block %d is not kept", block)
						return
					}
					added[i] = append(added[i], block)
				}
			})
		}
		done := make(chan struct{})
		go func() { wg.Wait(); close(done) }()
		for running := true; running; {
			select {
			case <-done:
				running = false
			default:
			}
			if running || life%3 == 0 { // else what came last is in the shared map alone
				flush(t, l)
			}
		}
		for i := range l.Bitmap().locks {
			released += l.Bitmap().locks[i].released
		}
		for _, list := range added {
			for _, block := range list {
				acked[block] = true
			}
		}
		must(t, l.Abandon()) // killed
	}
	if released == 0 {
		t.Error("no page was released: the test misses its subject")
	}
	t.Logf("%d blocks, %d pages released", len(acked), released)
}
