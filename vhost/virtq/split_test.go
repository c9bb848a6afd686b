package virtq_test

import (
	"errors"
	"fmt"
	"testing"

	"cowblk/internal/test"
	"cowblk/vhost/guest"
	"cowblk/vhost/virtq"
	"cowblk/vhost/virtq/virtqtest"
)

// Every size of ring, with indexes that wrap, several times around.
func TestRoundTrip(t *testing.T) {
	for _, base := range []uint16{0, 1, 0x7fff, 0xfffe} {
		for num := 1; num <= virtq.MaxNum; num *= 2 {
			t.Run(fmt.Sprintf("num %d base %d", num, base), func(t *testing.T) {
				r := newRig(t, virtq.SplitConfig{Num: uint16(num), Base: base})
				roundTrips(t, r, min(3*num+5, 2000))
			})
		}
	}
}

// roundTrips passes n one-descriptor chains through the ring in batches that fill it, and compares
// what both sides see.
func roundTrips(t *testing.T, r *rig, n int) {
	t.Helper()
	sent := map[uint16]uint32{} // by head: bytes
	base, total := r.q.Base(), 0
	for serial := uint32(1); total < n; {
		for r.drv.Free() > 0 && len(sent) < 100 {
			head, err := r.drv.Add(writable(dataAddr, serial))
			test.Must(t, err)
			sent[head] = serial
			serial++
		}
		r.drv.Expose()
		batch := len(sent)
		var c virtq.Chain
		for range batch {
			r.take(t, &c)
			if c.WriteLen != uint64(sent[c.Head]) || len(c.Writable) != 1 || len(c.Readable) != 0 {
				t.Fatalf("head %d: %d bytes, expected %d", c.Head, c.WriteLen, sent[c.Head])
			}
			r.q.Push(c.Head, uint32(c.WriteLen))
			if _, _, ok := r.drv.Take(); ok {
				t.Fatal("the driver sees an element before Publish")
			}
		}
		if _, ok, err := r.q.Next(); ok || err != nil {
			t.Fatalf("one chain too many: %v, error %v", ok, err)
		}
		if r.q.InFlight() != 0 {
			t.Fatalf("%d in flight", r.q.InFlight())
		}
		if !r.q.Publish() {
			t.Fatal("the driver did not want a call")
		}
		for range batch {
			head, written, ok := r.drv.Take()
			if !ok || sent[head] != written {
				t.Fatalf("used head %d, %d bytes, %v, expected %d bytes", head, written, ok,
					sent[head])
			}
			delete(sent, head)
		}
		if total += batch; r.q.Base() != base+uint16(total) {
			t.Fatalf("Base %d after %d chains from %d", r.q.Base(), total, base)
		}
	}
}

func TestNextBreaksOn(t *testing.T) {
	text := test.Texts(t, "ring.texts")
	for _, tc := range []struct {
		name string
		do   func(r *virtqtest.Ring)
	}{
		{"index that jumped", func(r *virtqtest.Ring) { r.SetAvailIdx(10 + 9) }},
		{"index that went back", func(r *virtqtest.Ring) { r.SetAvailIdx(9) }},
		{"head beyond the ring", func(r *virtqtest.Ring) { r.Offer(8) }},
		{"head far beyond", func(r *virtqtest.Ring) { r.Offer(0xffff) }},
		{"head twice", func(r *virtqtest.Ring) { r.Offer(3); r.Offer(3) }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newRig(t, virtq.SplitConfig{Num: 8, Base: 10})
			tc.do(r.drv.Ring)
			var err error
			for ok := true; ok && err == nil; {
				_, ok, err = r.q.Next()
			}
			if text(t, tc.name, err); !errors.Is(err, virtq.ErrBroken) {
				t.Fatalf("error %v, expected ErrBroken", err)
			}
			// It stays broken, whatever the ring contains now.
			r.drv.SetAvailIdx(r.q.Base())
			if _, ok, again := r.q.Next(); ok || again != err {
				t.Errorf("Next again: %v, error %v", ok, again)
			}
			if again := r.q.Load(r.table, &virtq.Chain{}); again != err {
				t.Errorf("Load: error %v", again)
			}
			if r.q.EnableKicks() {
				t.Error("a broken queue says that there is something to take")
			}
		})
	}
}

// A full ring is not a jump, and a head may be reused after it was pushed.
func TestNextAccepts(t *testing.T) {
	r := newRig(t, virtq.SplitConfig{Num: 8, Base: 0xfffc})
	for round := range 3 {
		for i := range uint16(8) {
			r.drv.Offer(7 - i)
		}
		for i := range uint16(8) {
			head, ok, err := r.q.Next()
			if !ok || err != nil || head != 7-i {
				t.Fatalf("round %d: head %d, %v, error %v, expected %d", round, head, ok, err, 7-i)
			}
			r.q.Push(head, 0)
		}
	}
}

// A device that takes over reads the used index from the ring (it is not part of the protocol), and
// writes nothing before its first completion.
func TestTakeOver(t *testing.T) {
	r := newRig(t, virtq.SplitConfig{Num: 16, Base: 100})
	roundTrips(t, r, 40)
	used := r.drv.UsedIdx()
	before := string(r.cfg.Used)
	r.cfg.Base = r.q.Base()
	r.restart(t)
	if string(r.cfg.Used) != before {
		t.Error("NewSplit wrote to the used ring")
	}
	if r.q.Publish() || r.drv.UsedIdx() != used {
		t.Errorf("used index %d after nothing was pushed, expected %d", r.drv.UsedIdx(), used)
	}
	roundTrips(t, r, 40)
}

func TestSetMemory(t *testing.T) {
	r := newRig(t, virtq.SplitConfig{Num: 16})
	roundTrips(t, r, 20)
	head := r.add(t, writable(dataAddr, 1))
	var c virtq.Chain
	r.take(t, &c)

	// The same files mapped again, as by a new SET_MEM_TABLE.
	next, err := r.mem.Table()
	test.Must(t, err)
	defer next.Release()
	desc, avail, used, err := virtq.MapSplit(next, 16, r.mem.User(r.drv.Desc),
		r.mem.User(r.drv.Avail), r.mem.User(r.drv.Used))
	test.Must(t, err)
	test.ErrorIs(t, r.q.SetMemory(desc, avail, used[:8]), virtq.ErrRing, "a short used ring")
	test.Must(t, r.q.SetMemory(desc, avail, used))
	r.q.Push(c.Head, 1)
	r.q.Publish()
	if got, n, ok := r.drv.Take(); !ok || got != head || n != 1 {
		t.Errorf("head %d, %d bytes, %v, expected head %d of the old mapping", got, n, ok, head)
	}
	roundTrips(t, r, 40)
}

func TestMapSplitChecks(t *testing.T) {
	text := test.Texts(t, "map.texts")
	const size = 0x4000
	mem, err := virtqtest.NewMemory(
		guest.RegionDesc{GuestAddr: 0, Size: size, UserAddr: 0x10000},
		guest.RegionDesc{GuestAddr: size, Size: size, UserAddr: 0x10000 + size},
		// Here the address in this process is 4 away from the front-end's.
		guest.RegionDesc{GuestAddr: 0x100000, Size: size, UserAddr: 0x100000, MmapOffset: 0x1004},
	)
	test.Must(t, err)
	defer mem.Close()
	tab, err := mem.Table()
	test.Must(t, err)
	defer tab.Release()
	const desc, avail, used = 0x10000, 0x11000, 0x12000
	const last = 0x10000 + 2*size
	for _, tc := range []struct {
		name              string
		num               uint16
		desc, avail, used uint64
		sound             bool
	}{
		{"sound", 16, desc, avail, used, true},
		{"one descriptor", 1, desc, desc + 16, desc + 24, true},
		{"at the very end", 4, last - 64, last - 80, last - 144, true},
		{"available ring on a multiple of 4", 4, desc, avail + 4, used + 4, true},
		{"second region", 16, desc + size, avail, used, true},
		{"size 0", 0, desc, avail, used, false},
		{"size 3", 3, desc, avail, used, false},
		{"size 65535", 65535, desc, avail, used, false},
		{"descriptors outside", 16, 0x90000, avail, used, false},
		{"descriptors cross the end", 16, last - 255, avail, used, false},
		{"descriptors cross regions", 16, desc + size - 16, avail, used, false},
		{"available ring at 0", 16, desc, 0, used, false},
		{"available ring truncated", 16, desc, last - 38, used, false},
		{"used ring truncated", 16, desc, avail, last - 132, false},
		{"used ring at the last address", 16, desc, avail, 1<<64 - 4, false},
		{"descriptors on a multiple of 8", 16, desc + 8, avail, used, false},
		{"available ring on a multiple of 2", 16, desc, avail + 2, used, false},
		{"used ring on a multiple of 2", 16, desc, avail, used + 2, false},
		{"odd", 16, desc, avail + 1, used, false},
		{"aligned there, not here", 16, 0x100000, avail, used, false},
		{"aligned here, not there", 16, 0x10000c, avail, used, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d, a, u, err := virtq.MapSplit(tab, tc.num, tc.desc, tc.avail, tc.used)
			if text(t, tc.name, err); !tc.sound {
				if !errors.Is(err, virtq.ErrRing) {
					t.Fatalf("error %v, expected ErrRing", err)
				}
				return
			}
			test.Must(t, err)
			test.Must(t, test.Err(virtq.NewSplit(virtq.SplitConfig{Num: tc.num, Desc: d, Avail: a,
				Used: u})))
		})
	}
	t.Run("parts that are too short", func(t *testing.T) {
		d, a, u, err := virtq.MapSplit(tab, 16, desc, avail, used)
		test.Must(t, err)
		for i, cfg := range []virtq.SplitConfig{
			{Num: 16, Desc: d[:255], Avail: a, Used: u},
			{Num: 16, Desc: d, Avail: a[:38], Used: u},
			{Num: 16, Desc: d, Avail: a, Used: u[:134]},
			{Num: 16},
			{Num: 32, Desc: d, Avail: a, Used: u},
			{Num: 12, Desc: d, Avail: a, Used: u},
		} {
			test.ErrorIs(t, test.Err(virtq.NewSplit(cfg)), virtq.ErrRing, i)
		}
	})
}
