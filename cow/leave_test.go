package cow_test

import (
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"

	"cowblk/cow"
	"cowblk/cow/cowtest"
	"cowblk/cow/layer"
)

// recordOps is the operations on files whose name ends in suffix, in their order.
func recordOps(x *cowtest.Intercept, ops ...string) func() []string {
	var mu sync.Mutex
	var seen []string
	x.Before(func(c cowtest.Call) error {
		mu.Lock()
		defer mu.Unlock()
		if slices.Contains(ops, c.Op) {
			seen = append(seen, c.Op+" "+c.Name[strings.LastIndexByte(c.Name, '.')+1:])
		}
		return nil
	})
	return func() []string {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(seen)
	}
}

// A disk that was left goes on in the next process as it was: nothing is synced in
// between, and what was not durable becomes so there, data first.
func TestLeaveAndGoOn(t *testing.T) {
	rig, x := newRig(t, cowtest.Shape{Size: 1<<30 + 512, BlockSize: 4096})
	write(t, rig.Disk, 'a', 0, 8192)
	sealed(t, promote(t, rig))
	write(t, rig.Disk, 'b', 4096, 4096)
	if err := rig.Disk.Flush(); err != nil {
		t.Fatal(err)
	}
	write(t, rig.Disk, 'c', 8192, 512)      // completed from below
	write(t, rig.Disk, 'd', 1<<30, 512)     // the partial last block
	write(t, rig.Disk, 'e', 1<<29, 64*4096) // a whole word of the map
	write(t, rig.Disk, 'f', 1<<28, 70*4096) // and more
	rewritten := recordOps(x, "datasync", "pwritev", "writeat")
	c, err := rig.Disk.Leave()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := rig.Disk.Leave(); !errors.Is(err, cow.ErrClosed) {
		t.Errorf("left twice: %v", err)
	}
	raw, err := c.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	got := new(cow.Carried)
	if err := got.UnmarshalBinary(raw); err != nil || got.Head != c.Head || !slices.Equal(got.Pages, c.Pages) || len(c.Pages) == 0 {
		t.Fatalf("%d pages, %v", len(c.Pages), err)
	}
	check := func(d *cow.Disk) {
		t.Helper()
		want(t, d, 'a', 0, 4096)
		want(t, d, 'b', 4096, 4096)
		want(t, d, 'c', 8192, 512)
		want(t, d, 0, 8192+512, 4096-512)
		want(t, d, 'd', 1<<30, 512)
		want(t, d, 'e', 1<<29, 64*4096)
		want(t, d, 0, 1<<29+64*4096, 4096)
		want(t, d, 'f', 1<<28, 70*4096)
	}
	d, err := cow.Open(rig.Spec, cow.Options{FS: x, Carried: got})
	if err != nil {
		t.Fatal(err)
	}
	if ops := rewritten(); len(ops) > 0 {
		t.Errorf("between the two: %v, expected nothing that waits for a device", ops)
	}
	check(d)
	if err := d.Flush(); err != nil {
		t.Fatal(err)
	}
	ops := rewritten()
	if i, j := slices.Index(ops, "datasync data"), slices.Index(ops, "pwritev map"); i < 0 || j < i || !slices.Contains(ops[j:], "datasync map") {
		t.Errorf("the first flush: %v, expected the data's sync, then the map's writes, then its sync", ops)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if err := rig.Open(); err != nil {
		t.Fatal(err)
	}
	check(rig.Disk)

	// What was handed over is for one head, left and not closed since.
	if err := rig.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := cow.Open(rig.Spec, cow.Options{Carried: got}); !errors.Is(err, cow.ErrMismatch) {
		t.Errorf("of a head that was closed: %v", err)
	}
	got.Head[0]++
	if _, err := cow.Open(rig.Spec, cow.Options{Carried: got}); !errors.Is(err, cow.ErrMismatch) {
		t.Errorf("of another head: %v", err)
	}
}

// What Leave returned is lost: the disk is as after the death of its process.
func TestLeaveAndForget(t *testing.T) {
	rig, _ := newRig(t, cowtest.Shape{Size: 1 << 20, BlockSize: 4096})
	write(t, rig.Disk, 'a', 0, 4096)
	if err := rig.Disk.Flush(); err != nil {
		t.Fatal(err)
	}
	write(t, rig.Disk, 'b', 4096, 4096)
	if _, err := rig.Disk.Leave(); err != nil {
		t.Fatal(err)
	}
	if err := rig.Open(); err != nil {
		t.Fatal(err)
	}
	want(t, rig.Disk, 'a', 0, 4096)
	want(t, rig.Disk, 0, 4096, 4096)
}

func TestLeaveRefused(t *testing.T) {
	rig, x := newRig(t, cowtest.Shape{Size: 1 << 20, BlockSize: 4096})
	ch, err := rig.Disk.NewChannel()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := rig.Disk.Leave(); !errors.Is(err, cow.ErrInFlight) {
		t.Errorf("with a channel: %v", err)
	}
	if err := ch.Close(); err != nil {
		t.Fatal(err)
	}
	bad := errors.New("bad sector")
	write(t, rig.Disk, 'a', 0, 4096)
	x.Before(func(c cowtest.Call) error {
		if c.Op == "datasync" {
			return bad
		}
		return nil
	})
	if err := rig.Disk.Flush(); !errors.Is(err, bad) {
		t.Errorf("flush: %v", err)
	}
	if _, err := rig.Disk.Leave(); !errors.Is(err, cow.ErrFailed) {
		t.Errorf("after a failed flush: %v", err)
	}
	want(t, rig.Disk, 'a', 0, 4096) // nothing has happened to it
}

func TestCarriedBeyondTheDisk(t *testing.T) {
	rig, _ := newRig(t, cowtest.Shape{Size: 1<<20 + 512, BlockSize: 4096}) // 257 blocks
	for name, page := range map[string]layer.DirtyPage{
		"block 257":  {Words: [layer.MapPageSize / 8]uint64{4: 2}},
		"block 4095": {Words: [layer.MapPageSize / 8]uint64{63: 1 << 63}},
		"page 1":     {Page: 1, Words: [layer.MapPageSize / 8]uint64{1}},
		"page 1<<60": {Page: 1 << 60, Words: [layer.MapPageSize / 8]uint64{1}},
	} {
		c, err := rig.Disk.Leave()
		if err != nil {
			t.Fatal(err)
		}
		spoilt := &cow.Carried{Head: c.Head, Pages: append(slices.Clone(c.Pages), page)}
		if _, err := cow.Open(rig.Spec, cow.Options{Carried: spoilt}); !errors.Is(err, cow.ErrMismatch) {
			t.Errorf("%s: %v", name, err)
		}
		if rig.Disk, err = cow.Open(rig.Spec, cow.Options{Carried: c}); err != nil {
			t.Fatal(err)
		}
	}
}

func FuzzCarried(f *testing.F) {
	raw, err := (&cow.Carried{Pages: []layer.DirtyPage{{Page: 7, Words: [layer.MapPageSize / 8]uint64{5, 6}}}}).MarshalBinary()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Add(raw[:40])
	f.Fuzz(func(t *testing.T, p []byte) {
		var c cow.Carried
		if c.UnmarshalBinary(p) != nil {
			return
		}
		if again, err := c.MarshalBinary(); err != nil || string(again) != string(p) {
			t.Errorf("%x becomes %x, %v", p, again, err)
		}
	})
}
