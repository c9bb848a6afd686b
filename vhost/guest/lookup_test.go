package guest

import (
	"encoding/binary"
	"errors"
	"testing"

	"cowblk/internal/test"
)

func TestSlice(t *testing.T) {
	tab := twoPlusOne(t)
	for _, tc := range []struct {
		name   string
		gpa, n uint64
		first  int // value of the first byte, which identifies the place in the file; -1: refused
	}{
		{"start", 0x1000, 16, 0x20},
		{"whole region", 0x1000, 2 * page, 0x20},
		{"last byte", 0x2fff, 1, 0x3f},
		{"second", 0x3000, page, 0x00},
		{"third, odd offset", 0x10000, 1, 0x40},
		{"third, end", 0x11fef, 1, 0x5f},
		{"nothing, in a region", 0x1000, 0, -2},
		{"below all", 0xfff, 1, -1},
		{"address 0", 0, 1, -1},
		{"in the gap", 0x4000, 1, -1},
		{"one past the third", 0x11ff0, 1, -1},
		{"crosses into the gap", 0x3fff, 2, -1},
		{"crosses regions", 0x2fff, 2, -1},
		{"length wraps", 0x1000, 1<<64 - 1, -1},
		{"sum wraps to inside", 0x2000, 1<<64 - 0x1000, -1},
		{"last address", 1<<64 - 1, 1, -1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b, err := tab.Slice(tc.gpa, tc.n)
			if tc.first == -1 {
				if !errors.Is(err, ErrOutside) {
					t.Fatalf("%d bytes, error %v, expected ErrOutside", len(b), err)
				}
				return
			}
			test.Must(t, err)
			if uint64(len(b)) != tc.n || cap(b) != len(b) {
				t.Fatalf("length %d, capacity %d, expected %d", len(b), cap(b), tc.n)
			}
			if tc.n > 0 && int(b[0]) != tc.first {
				t.Fatalf("first byte %#x, expected %#x", b[0], tc.first)
			}
		})
	}
}

func TestAppend(t *testing.T) {
	tab := twoPlusOne(t)
	for _, tc := range []struct {
		name   string
		gpa, n uint64
		lens   []int // nil: refused
	}{
		{"in one region", 0x1800, 0x100, []int{0x100}},
		{"up to the border", 0x2f00, 0x100, []int{0x100}},
		{"across the border", 0x2f00, 0x101, []int{0x100, 1}},
		{"both regions", 0x1000, 3 * page, []int{2 * page, page}},
		{"across, into the gap", 0x1000, 3*page + 1, nil},
		{"from the gap", 0x4000, 1, nil},
		{"from the third outwards", 0x11fef, 2, nil},
		{"length wraps", 0x1000, 1<<64 - 1, nil},
		{"sum wraps", 0x3000, 1<<64 - 0x2000, nil},
		{"empty, nowhere", 0xdead0000, 0, []int{}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			before := [][]byte{{1}}
			got, err := tab.Append(before, tc.gpa, tc.n)
			if tc.lens == nil {
				if !errors.Is(err, ErrOutside) || len(got) != 1 {
					t.Fatalf("%d slices, error %v, expected the one before and ErrOutside",
						len(got), err)
				}
				return
			}
			if err != nil || len(got) != 1+len(tc.lens) {
				t.Fatalf("%d slices, error %v, expected %d", len(got)-1, err, len(tc.lens))
			}
			for i, n := range tc.lens {
				if len(got[i+1]) != n {
					t.Errorf("slice %d: %d bytes, expected %d", i, len(got[i+1]), n)
				}
			}
		})
	}
}

func TestUser(t *testing.T) {
	tab := twoPlusOne(t)
	for _, tc := range []struct {
		name   string
		uva, n uint64
		first  int // as in TestSlice
	}{
		{"first", 0x70000, 2 * page, 0x20},
		{"second", 0x90000, page, 0x00},
		{"third", 0x40010 + 0x100, 16, 0x41},
		{"guest address", 0x1000, 1, -1},
		{"before", 0x6ffff, 1, -1},
		{"past the end", 0x71fff, 2, -1},
		{"length wraps", 0x70000, 1<<64 - 1, -1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b, err := tab.User(tc.uva, tc.n)
			if tc.first == -1 {
				if !errors.Is(err, ErrOutside) {
					t.Fatalf("error %v, expected ErrOutside", err)
				}
				return
			}
			if err != nil || uint64(len(b)) != tc.n || int(b[0]) != tc.first {
				t.Fatalf("%d bytes, error %v", len(b), err)
			}
		})
	}
}

func TestAppendDoesNotAllocate(t *testing.T) {
	tab := twoPlusOne(t)
	dst := make([][]byte, 0, 4)
	if n := testing.AllocsPerRun(100, func() {
		var err error
		if dst, err = tab.Append(dst[:0], 0x2f00, 0x200); err != nil || len(dst) != 2 {
			t.Fatal(len(dst), err)
		}
		if _, err = tab.Slice(0x10000, 16); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations per lookup", n)
	}
}

// FuzzTable builds a table from arbitrary regions of one file and looks up addresses: an accepted
// table has no overlaps, and results lie where the description says.
func FuzzTable(f *testing.F) {
	seed := func(vs ...uint64) {
		var b []byte
		for _, v := range vs {
			b = binary.LittleEndian.AppendUint64(b, v)
		}
		f.Add(b, vs[0]+100, vs[1])
	}
	seed(0x1000, page, 0x70000, 0)
	seed(0x1000, 2*page, 0x70000, 0, 0x3000, page, 0x90000, 2*page)
	seed(1<<64-page, page, 0x70000, 0, 0, page, 1<<63, 16)
	fd := memfd(f, "fuzz", 4*page)
	f.Fuzz(func(t *testing.T, raw []byte, addr, n uint64) {
		var rs []RegionDesc
		var fds []int
		for ; len(raw) >= 32 && len(rs) < 8; raw = raw[32:] {
			at := func(i int) uint64 { return binary.LittleEndian.Uint64(raw[8*i:]) }
			rs = append(rs, RegionDesc{GuestAddr: at(0), Size: at(1), UserAddr: at(2),
				MmapOffset: at(3)})
			fds = append(fds, fd)
		}
		tab, err := NewTable(rs, fds)
		if err != nil {
			return
		}
		defer tab.Release()
		// covered counts the bytes from a that the descriptions cover.
		covered := func(a uint64) (n uint64) {
			for again := true; again; {
				again = false
				for _, r := range rs {
					if a >= r.GuestAddr && a-r.GuestAddr < r.Size {
						n += r.Size - (a - r.GuestAddr)
						a = r.GuestAddr + r.Size
						again = true
					}
				}
			}
			return n
		}
		segs, err := tab.Append(nil, addr, n)
		if (err == nil) != (n <= covered(addr)) {
			t.Fatalf("%v: append %#x+%#x: error %v, covered %#x", rs, addr, n, err, covered(addr))
		}
		total := uint64(0)
		for _, s := range segs {
			if len(s) == 0 {
				t.Fatal("empty slice")
			}
			total += uint64(len(s))
			_, _ = s[0], s[len(s)-1]
		}
		if err == nil && total != n {
			t.Fatalf("%d bytes, expected %d", total, n)
		}
		if b, err := tab.Slice(addr, n); err == nil && (uint64(len(b)) != n || n > 0 &&
			n > covered(addr)) {
			t.Fatalf("slice of %d bytes, expected %d, covered %d", len(b), n, covered(addr))
		}
		if b, err := tab.User(addr, n); err == nil && uint64(len(b)) != n {
			t.Fatalf("user slice of %d bytes, expected %d", len(b), n)
		}
	})
}

func BenchmarkAppend(b *testing.B) {
	tab := twoPlusOne(b)
	dst := make([][]byte, 0, 4)
	for b.Loop() {
		dst, _ = tab.Append(dst[:0], 0x10000, 4096)
	}
}
