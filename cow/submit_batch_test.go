package cow_test

import (
	"math/rand/v2"
	"testing"
	"testing/synctest"

	"cowblk/cow"
	"cowblk/cow/cowtest"
	"cowblk/internal/test"
)

// A batch may hold any request, and any number of them.
func TestSubmitBatch(t *testing.T) {
	rig, _ := newRig(t, cowtest.Shape{Size: 4<<20 + 512, BlockSize: 4096, BaseSize: 3<<20 + 512,
		BaseOffset: 512})
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
				rs = append(rs, &cow.Request{Op: cow.OpRead, Offset: off, Length: n,
					Data: [][]byte{make([]byte, n)}})
			}
			rng.Shuffle(len(rs), func(i, j int) { rs[i], rs[j] = rs[j], rs[i] })
			ch.SubmitBatch(rs)
			test.Must(t, waitCompletions(ch, len(rs)))
			for _, r := range rs {
				if r.Err != nil {
					t.Fatal(r.Err)
				}
			}
			odd := []*cow.Request{
				{Op: cow.OpRead, Offset: 1 << 60}, {Op: cow.OpRead, Offset: rig.Shape.Size},
				{Op: cow.OpRead}, {Op: cow.OpFlush},
				{Op: cow.OpRead}, {Op: cow.OpWrite, Offset: 512}, {Op: cow.OpRead, Offset: 512},
			}
			ch.SubmitBatch(odd)
			test.Must(t, waitCompletions(ch, len(odd)))
		}
	}
	want(t, rig.Disk, 7, 1<<20, 1<<19)
	want(t, rig.Disk, 8, 3<<19, 4096)
}

// A batch that began on the view before a promotion sees a write that was acknowledged after it,
// pins the old view only for its reads, and no longer than they last. (Rules: a reader that finds a
// newer owner takes a newer view; the pin is cached for reads only.)
func TestBatchFindsNewerOwner(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rig, x := newRig(t, cowtest.Shape{Size: 1 << 20, BlockSize: 4096, BaseSize: 1 << 20})
		write(t, rig.Disk, 'a', 4096, 4096)
		hold := setTrap(t, x, "read", "base")
		first, second, third := make([]byte, 4096), make([]byte, 4096), make([]byte, 4096)
		rs := []*cow.Request{
			{Op: cow.OpRead, Length: 4096, Data: [][]byte{first}},
			{Op: cow.OpRead, Offset: 4096, Length: 4096, Data: [][]byte{second}},
			{Op: cow.OpWrite, Offset: 8192, Length: 4096, Data: [][]byte{fill('c', 4096)}},
			{Op: cow.OpRead, Offset: 8192, Length: 4096, Data: [][]byte{third}},
		}
		ch := channel(t, rig.Disk, false)
		batch := test.Go(func() error { ch.SubmitBatch(rs); return waitCompletions(ch, len(rs)) })
		<-hold.caught
		done := promote(t, rig)
		write(t, rig.Disk, 'b', 4096, 4096)
		stop := setTrap(t, x, "write", "0001.data")
		if test.Go(func() error { <-done.Done(); return nil }).Ends() {
			t.Error("the promotion has finished while a read is on the old view")
		}
		hold.open()
		<-stop.caught
		sealed(t, done) // the batch is in its write
		stop.open()
		batch.Must(t)
		for i, r := range rs {
			if r.Err != nil {
				t.Errorf("request %d: %v", i, r.Err)
			}
		}
		if got := string([]byte{second[0], third[0]}); got != "bc" {
			t.Errorf("blocks 1 and 2: expected the acknowledged writes, found %q", got)
		}
	})
}
