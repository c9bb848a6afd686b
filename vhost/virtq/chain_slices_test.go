package virtq_test

import (
	"slices"
	"testing"

	"cowblk/internal/test"
	"cowblk/vhost/virtq"
	"cowblk/vhost/virtq/virtqtest"
)

// Every descriptor of a chain spans all of many regions: the slices of a chain are bounded, and the
// memory of a long one is freed.
func TestPiecesOfAChain(t *testing.T) {
	const base, regions, page = 0x10000, 64, 4096
	mem, err := virtqtest.NewMemory(virtqtest.Layout(base, slices.Repeat([]uint64{page},
		regions)...)...)
	test.Must(t, err)
	defer mem.Close()
	table, err := mem.Table()
	test.Must(t, err)
	defer table.Release()
	ring, err := virtqtest.NewRing(mem, 128, base)
	test.Must(t, err)
	for _, tc := range []struct {
		descs int
		want  error
		wide  bool
	}{{1, nil, false}, {2, nil, false}, {6, nil, true}, {32, nil, true},
		{33, virtq.ErrBroken, true}, {100, virtq.ErrBroken, true}} {
		ds := linked(tc.descs, write)
		for i := range ds {
			ds[i].Addr, ds[i].Len = base, regions*page
			ring.SetDesc(uint16(i), ds[i])
		}
		desc, avail, used, err := virtq.MapSplit(table, 128, mem.User(ring.Desc),
			mem.User(ring.Avail), mem.User(ring.Used))
		test.Must(t, err)
		q, err := virtq.NewSplit(virtq.SplitConfig{Num: 128, Desc: desc, Avail: avail, Used: used})
		test.Must(t, err)
		var c virtq.Chain
		err = q.Load(table, &c)
		test.ErrorIs(t, err, tc.want, tc.descs)
		if err == nil && len(c.Writable) != tc.descs*regions {
			t.Errorf("%d descriptors: %d slices, expected %d", tc.descs, len(c.Writable),
				tc.descs*regions)
		}
		test.Equal(t, c.Wide(), tc.wide, "descriptors: wide", tc.descs)
		kept := cap(c.Writable)
		c.Trim()
		if c.Wide() || (!tc.wide && cap(c.Writable) != kept) {
			t.Errorf("%d descriptors: capacity %d after Trim, %d before", tc.descs, cap(c.Writable),
				kept)
		}
	}
}
