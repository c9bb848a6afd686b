package virtqtest

import (
	"encoding/binary"
	"errors"
	"testing"

	"cowblk/vhost/virtq"
)

func newDriver(t *testing.T, num uint16) *Driver {
	t.Helper()
	mem, err := NewMemory(Layout(0x1000, 0x8000)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { mem.Close() })
	ring, err := NewRing(mem, num, 0x1000)
	if err != nil {
		t.Fatal(err)
	}
	return NewDriver(ring)
}

// use writes a used element as a device would.
func (r *Ring) use(head uint32, written uint32) {
	off := virtq.RingEntries + virtq.UsedElemSize*int(r.UsedIdx()&(r.Num-1))
	binary.LittleEndian.PutUint32(r.used[off:], head)
	binary.LittleEndian.PutUint32(r.used[off+4:], written)
	r.SetUsedIdx(r.UsedIdx() + 1)
}

func TestDriverKeepsItsDescriptors(t *testing.T) {
	d := newDriver(t, 4)
	three := make([]virtq.Desc, 3)
	head, err := d.Add(three...)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.Add(three...); !errors.Is(err, ErrFull) || d.Free() != 1 {
		t.Errorf("three more of four: error %v, %d free", err, d.Free())
	}
	if d.AvailIdx() != 0 || !d.Expose() || d.AvailIdx() != 1 {
		t.Errorf("available index %d after one chain", d.AvailIdx())
	}
	d.use(uint32(head), 12)
	if got, n, ok := d.Take(); !ok || got != head || n != 12 || d.Free() != 4 {
		t.Errorf("took head %d, %d bytes, %v; %d free", got, n, ok, d.Free())
	}
	if _, _, ok := d.Take(); ok {
		t.Error("took a chain that is not there")
	}
}

func TestDriverNoticesAFalseDevice(t *testing.T) {
	for name, head := range map[string]uint32{"not in flight": 1, "beyond the ring": 4,
		"far beyond": 1 << 16} {
		d := newDriver(t, 4)
		d.use(head, 0)
		if _, _, ok := d.Take(); ok || d.Err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

func TestMemoryBounds(t *testing.T) {
	regions := Layout(0x1000, 0x1000, 0x1000)
	regions[1].MmapOffset = 0x2000
	mem, err := NewMemory(regions...)
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()
	table, err := mem.Table()
	if err != nil {
		t.Fatal(err)
	}
	defer table.Release()
	for _, tc := range []struct {
		gpa, n uint64
		ok     bool
	}{
		{0x1000, 0x1000, true}, {0x2000, 0x1000, true}, {0x2ff0, 16, true},
		{0xfff, 1, false}, {0x1fff, 2, false}, {0x3000, 1, false}, {0x2000, 1<<64 - 1, false},
	} {
		b := mem.Bytes(tc.gpa, tc.n)
		if (b != nil) != tc.ok {
			t.Errorf("%#x+%#x: found %v", tc.gpa, tc.n, b != nil)
		}
		if b == nil {
			continue
		}
		// The device sees the same bytes through either kind of address.
		b[0]++
		g, err1 := table.Slice(tc.gpa, tc.n)
		u, err2 := table.User(mem.User(tc.gpa), tc.n)
		if err1 != nil || err2 != nil || g[0] != b[0] || u[0] != b[0] {
			t.Errorf("%#x: the device's view differs: %v, %v", tc.gpa, err1, err2)
		}
	}
	if mem.User(0x3000) != 0 {
		t.Error("a user address for what is not memory")
	}
}
