package cow_test

import (
	"errors"
	"runtime"
	"sync/atomic"
	"testing"

	"cowblk/cow"
	"cowblk/cow/cowtest"
	"cowblk/cow/vfs"
	"cowblk/internal/test"
)

// twoDisks are two rigs with a promotion prepared on each.
func twoDisks(t *testing.T) (rigs [2]*cowtest.Rig) {
	for i := range rigs {
		rig, err := cowtest.NewRig(t.TempDir(), vfs.OS{}, cowtest.Shape{Size: 1 << 20,
			BlockSize: 4096})
		test.Must(t, err)
		t.Cleanup(func() { rig.Close() })
		rigs[i] = rig
	}
	return rigs
}

func prepare(t *testing.T, rigs [2]*cowtest.Rig) (ps []*cow.Promotion) {
	for _, r := range rigs {
		next, err := r.NextHead()
		test.Must(t, err)
		p, err := r.Disk.Prepare(next)
		test.Must(t, err)
		ps = append(ps, p)
	}
	return ps
}

// While two disks are being swapped, a write to the first after its swap does not complete before
// the second is swapped too: otherwise a later write to the second could be in a tag without the
// write before it. (Rule: gate.)
func TestSwapGatesWritesUntilAllDisksAreSwapped(t *testing.T) {
	rigs := twoDisks(t)
	ps := prepare(t, rigs)
	var chs [2]*cow.Channel
	for i, r := range rigs {
		var err error
		if chs[i], err = r.Disk.NewChannel(); err != nil {
			t.Fatal(err)
		}
	}
	if !cow.BeginSwap(ps...) {
		t.Fatal("not claimed")
	}
	release := rigs[1].Disk.HoldSwap()
	swap := test.Go(func() error { cow.SwapAll(ps...); return nil })
	for !rigs[0].Disk.ViewChanged() {
		runtime.Gosched()
	}
	both := test.Go(func() error {
		for _, ch := range chs {
			r := &cow.Request{Op: cow.OpWrite, Length: 512, Data: [][]byte{fill('w', 512)}}
			ch.Submit(r)
			if err := errors.Join(waitCompletions(ch, 1), r.Err); err != nil {
				return err
			}
		}
		return nil
	})
	read := test.Go(func() error {
		_, err := rigs[0].Disk.ReadAt(make([]byte, 512), 0)
		return err
	})
	read.Must(t) // reads pass the gate
	if !both.WaitsIn(t, "cow.(*Channel).pinWrite") {
		t.Error("a write got through between the cuts of two disks")
	}
	release()
	swap.Must(t)
	both.Must(t)
	for i, r := range rigs {
		sealed(t, ps[i])
		test.Must(t, chs[i].Close())
		want(t, r.Disk, 'w', 0, 512)
		if n := counter(t, r, 1); n != 0 {
			t.Errorf("disk %d: the tag holds the write that came after the cut", i)
		}
	}
}

// The same at random, many times: a writer writes to one disk after the other, each write after the
// completion of the last.
func TestSwapOfSeveralDisksIsAtomic(t *testing.T) {
	rigs := twoDisks(t)
	var stop atomic.Bool
	writer := test.Go(func() error {
		for n := uint32(1); !stop.Load(); n++ {
			p := fill(0, 512)
			p[0], p[1], p[2], p[3] = byte(n>>24), byte(n>>16), byte(n>>8), byte(n)
			for _, r := range rigs {
				if _, err := r.Disk.WriteAt(p, 0); err != nil {
					return err
				}
			}
		}
		return nil
	})
	const cuts = 30
	for range cuts {
		ps := prepare(t, rigs)
		test.Must(t, cow.Swap(ps...))
		for _, p := range ps {
			sealed(t, p)
		}
	}
	stop.Store(true)
	writer.Must(t)
	for _, r := range rigs {
		test.Must(t, r.Close())
	}
	for cut := 1; cut <= cuts; cut++ {
		a, b := counter(t, rigs[0], cut), counter(t, rigs[1], cut)
		if a != b && a != b+1 {
			t.Errorf("cut %d: the first disk holds write %d, the second %d", cut, a, b)
		}
	}
}

// counter returns the big-endian number at the start of a tag.
func counter(t *testing.T, r *cowtest.Rig, layers int) uint32 {
	t.Helper()
	d, err := r.OpenTag(layers)
	test.Must(t, err)
	defer d.Close()
	var p [4]byte
	test.Must(t, test.Err(d.ReadAt(p[:], 0)))
	return uint32(p[0])<<24 | uint32(p[1])<<16 | uint32(p[2])<<8 | uint32(p[3])
}
