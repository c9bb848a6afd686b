package cow_test

import (
	"math/rand/v2"
	"testing"

	"cowblk/cow"
	"cowblk/cow/cowtest"
)

// Prefetch takes any request and changes nothing.
func TestPrefetch(t *testing.T) {
	rig, _ := newRig(t, cowtest.Shape{Size: 4<<20 + 512, BlockSize: 4096, BaseSize: 3<<20 + 512, BaseOffset: 512})
	write(t, rig.Disk, 7, 1<<20, 1<<20)
	sealed(t, promote(t, rig))
	write(t, rig.Disk, 8, 3<<19, 4096)
	rng := rand.New(rand.NewPCG(3, 4))
	for _, async := range []bool{false, true} {
		ch := channel(t, rig.Disk, async)
		for range 3 { // what has been seen in the first round is fetched in the next
			var rs []*cow.Request
			for off := int64(0); off < rig.Shape.Size; off += 4096 {
				n := min(4096, rig.Shape.Size-off)
				rs = append(rs, &cow.Request{Op: cow.OpRead, Offset: off, Length: n, Data: [][]byte{make([]byte, n)}})
			}
			rng.Shuffle(len(rs), func(i, j int) { rs[i], rs[j] = rs[j], rs[i] })
			ch.Prefetch(rs)
			for _, r := range rs {
				ch.Submit(r)
			}
			if err := await(ch, len(rs)); err != nil {
				t.Fatal(err)
			}
			for _, r := range rs {
				if r.Err != nil {
					t.Fatal(r.Err)
				}
			}
			ch.Prefetch([]*cow.Request{
				{Op: cow.OpFlush}, {Op: cow.OpWrite, Offset: 512}, {Op: cow.OpRead, Offset: 1 << 60}, {Op: cow.OpRead, Offset: rig.Shape.Size},
				{Op: cow.OpDiscard, Ranges: []cow.Range{{Offset: 1 << 60, Length: 1}}},
			})
		}
	}
	want(t, rig.Disk, 7, 1<<20, 1<<19)
	want(t, rig.Disk, 8, 3<<19, 4096)
}
