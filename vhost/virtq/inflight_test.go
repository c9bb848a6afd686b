package virtq_test

import (
	"encoding/binary"
	"errors"
	"slices"
	"testing"

	"cowblk/internal/test"
	"cowblk/vhost/virtq"
)

// takeAll takes all available heads.
func (r *rig) takeAll(t *testing.T) (heads []uint16) {
	t.Helper()
	for {
		head, ok, err := r.q.Next()
		test.Must(t, err)
		if !ok {
			return heads
		}
		heads = append(heads, head)
	}
}

// offer makes n chains available.
func (r *rig) offer(t *testing.T, n int) (heads []uint16) {
	t.Helper()
	for range n {
		heads = append(heads, r.add(t, readable(dataAddr, 16)))
	}
	return heads
}

func newTracked(t *testing.T) *rig {
	t.Helper()
	return newRig(t, virtq.SplitConfig{Num: 8, Base: 5, Inflight: region(t, 8), InflightNum: 8})
}

// Requests in flight come first, in the order in which they were taken, whatever base the front-end
// sets; the rest of the ring follows, once.
func TestSuccessor(t *testing.T) {
	r := newTracked(t)
	heads := r.offer(t, 6)
	got := []uint16{}
	for range 4 {
		head, _, err := r.q.Next()
		test.Must(t, err)
		got = append(got, head)
	}
	r.q.Push(got[2], 1)
	r.q.Push(got[0], 1)
	r.q.Publish()
	r.q.Push(got[1], 1) // not published: repeated
	want := []uint16{heads[1], heads[3], heads[4], heads[5]}
	for _, base := range []uint16{7, 0, 9, 1234} {
		r.cfg.Base = base
		r.restart(t)
		if !r.q.EnableKicks() {
			t.Error("a successor with work left would sleep")
		}
		if got := r.takeAll(t); !slices.Equal(got, want) {
			t.Errorf("base %d: took %v, expected %v", base, got, want)
		}
		if r.q.InFlight() != 4 || r.q.Base() != 11 {
			t.Errorf("base %d: %d in flight, next entry %d; expected 4 and 11", base,
				r.q.InFlight(), r.q.Base())
		}
	}
	for _, head := range want {
		r.q.Push(head, 1)
	}
	r.q.Publish()
	r.restart(t)
	if got := r.takeAll(t); len(got) != 0 {
		t.Errorf("all is done, and a successor took %v", got)
	}
	if more := r.offer(t, 1); !slices.Equal(r.takeAll(t), more) {
		t.Error("a later chain was not taken")
	}
}

// Half of the requests in flight are returned again when the next process dies, too.
func TestSuccessorOfASuccessor(t *testing.T) {
	r := newTracked(t)
	heads := r.offer(t, 4)
	r.takeAll(t)
	r.restart(t)
	for range 2 {
		if _, _, err := r.q.Next(); err != nil {
			t.Fatal(err)
		}
	}
	r.restart(t)
	if got := r.takeAll(t); !slices.Equal(got, heads) {
		t.Errorf("took %v, expected %v", got, heads)
	}
}

// A region without information about this ring: never used, or of a ring that was set up anew
// since.
func TestRegionOfAnotherLife(t *testing.T) {
	r := newTracked(t)
	r.offer(t, 3)
	r.takeAll(t)
	r.drv.Reset(0) // the driver was reloaded
	r.restart(t)
	want := r.offer(t, 2)
	if got := r.takeAll(t); !slices.Equal(got, want) {
		t.Errorf("took %v, expected %v", got, want)
	}
	clear(r.cfg.Inflight)
	r.cfg.Base = 2 // known to a front-end that fetched a new buffer
	r.restart(t)
	if got := r.takeAll(t); len(got) != 0 {
		t.Errorf("took %v from entry 2 on, expected nothing", got)
	}
}

// A damaged region breaks the queue before anything is taken.
func TestDamagedRegion(t *testing.T) {
	text := test.Texts(t, "inflight.texts")
	put16 := func(off int, v uint16) func(b []byte) {
		return func(b []byte) { binary.LittleEndian.PutUint16(b[off:], v) }
	}
	mark := func(head int, v byte) func(b []byte) {
		return func(b []byte) { b[16+16*head] = v }
	}
	for _, tc := range []struct {
		name   string
		damage func(b []byte)
	}{
		{"features", func(b []byte) { b[0] = 1 }},
		{"version", put16(8, 2)},
		{"fewer states", put16(10, 15)},
		{"more states", put16(10, 17)},
		{"list beyond the ring", func(b []byte) { put16(12, 9)(b); put16(14, 6)(b) }},
		{"list goes beyond the ring", func(b []byte) {
			put16(12, 7)(b)
			put16(16+16*7+6, 77)(b)
			put16(14, 5)(b)
		}},
		{"longer batch than the ring", put16(14, 65534)},
		{"used index from the future", put16(14, 8)},
		{"a strange mark", mark(3, 2)},
		{"a mark beyond the ring", mark(8, 1)},
		{"more marks than the driver waits for", func(b []byte) {
			for head := range 8 {
				mark(head, 1)(b)
			}
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newRig(t, virtq.SplitConfig{Num: 8, Base: 5, Inflight: region(t, 16),
				InflightNum: 16})
			r.offer(t, 6)
			heads := r.takeAll(t)
			r.q.Push(heads[0], 1)
			r.q.Publish()
			r.q.Push(heads[1], 1)
			r.q.Publish() // used index 7
			tc.damage(r.cfg.Inflight)
			r.restart(t)
			_, ok, err := r.q.Next()
			if text(t, tc.name, err); ok || !errors.Is(err, virtq.ErrBroken) {
				t.Errorf("took %v, error %v", ok, err)
			}
		})
	}
}

func TestRegionTooSmall(t *testing.T) {
	r := newTracked(t)
	for _, tc := range []struct {
		num  uint16
		size int
	}{{4, virtq.InflightSize(4)}, {8, virtq.InflightSize(8) - 1}, {16, virtq.InflightSize(8)}} {
		cfg := r.cfg
		cfg.Inflight, cfg.InflightNum = cfg.Inflight[:tc.size], tc.num
		test.ErrorIs(t, test.Err(virtq.NewSplit(cfg)), virtq.ErrRing, tc.size, tc.num)
	}
}

// The size is that of the specification's structures, in whole cache lines.
func TestInflightSize(t *testing.T) {
	for num, want := range map[uint16]int{1: 64, 3: 64, 4: 128, 128: 2112, 1024: 16448} {
		if got := virtq.InflightSize(num); got != want {
			t.Errorf("%d descriptors: %d bytes, expected %d", num, got, want)
		}
	}
}
