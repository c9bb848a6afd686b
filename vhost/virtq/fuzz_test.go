package virtq_test

import (
	"encoding/binary"
	"testing"

	"cowblk/internal/test"
	"cowblk/vhost/virtq"
	"cowblk/vhost/virtq/virtqtest"
)

// fuzzMem is a small memory that a fuzzer can fill completely: three adjacent regions of a page,
// with the ring of 16 descriptors at the start.
const (
	fuzzNum  = 16
	fuzzBase = 0x1000
	fuzzPage = 0x1000
)

// FuzzRing uses arbitrary bytes as the ring, the indirect tables and all other guest memory, and
// takes chains until the ring is empty or broken.
func FuzzRing(f *testing.F) {
	mem, err := virtqtest.NewMemory(virtqtest.Layout(fuzzBase, fuzzPage, fuzzPage, fuzzPage)...)
	test.Must(f, err)
	f.Cleanup(func() { mem.Close() })
	table, err := mem.Table()
	test.Must(f, err)
	f.Cleanup(table.Release)
	ring, err := virtqtest.NewRing(mem, fuzzNum, fuzzBase)
	test.Must(f, err)
	seedRings(f, mem, ring)

	f.Fuzz(func(t *testing.T, raw []byte, base uint16, indirect, eventIdx bool) {
		for p := range uint64(3) {
			b := mem.Bytes(fuzzBase+p*fuzzPage, fuzzPage)
			clear(b[copy(b, raw):])
			raw = raw[min(len(raw), fuzzPage):]
		}
		desc, avail, used, err := virtq.MapSplit(table, fuzzNum, mem.User(ring.Desc),
			mem.User(ring.Avail), mem.User(ring.Used))
		test.Must(t, err)
		q, err := virtq.NewSplit(virtq.SplitConfig{Num: fuzzNum, Desc: desc, Avail: avail,
			Used: used,
			Base: base, Indirect: indirect, EventIdx: eventIdx})
		test.Must(t, err)
		start := ring.UsedIdx()
		var c virtq.Chain
		n := uint16(0)
		for {
			head, ok, err := q.Next()
			if err != nil || !ok {
				break
			}
			if n++; n > fuzzNum {
				t.Fatal("more chains than the ring has entries")
			}
			c.Head = head
			if err := q.Load(table, &c); err != nil {
				break
			}
			checkChain(t, &c)
			// After all are loaded, because the used elements may overlap the descriptors.
			defer q.Publish()
			defer q.Push(head, uint32(c.WriteLen))
		}
		q.EnableKicks()
		if got := ring.UsedIdx(); got != start {
			t.Fatalf("used index went from %d to %d without a Publish", start, got)
		}
	})
}

// checkChain accesses every byte of a loaded chain and checks its sums.
func checkChain(t *testing.T, c *virtq.Chain) {
	var sum [2]uint64
	for i, segs := range [][][]byte{c.Readable, c.Writable} {
		if len(segs) > 3*virtq.MaxChain {
			t.Fatalf("%d slices", len(segs))
		}
		for _, s := range segs {
			if len(s) == 0 || len(s) > fuzzPage {
				t.Fatalf("slice of %d bytes", len(s))
			}
			sum[i] += uint64(len(s))
			s[0], s[len(s)-1] = s[len(s)-1], s[0]
		}
	}
	if sum != [2]uint64{c.ReadLen, c.WriteLen} {
		t.Fatalf("lengths %v, expected %d and %d", sum, c.ReadLen, c.WriteLen)
	}
}

// seedRings adds valid rings to the corpus.
func seedRings(f *testing.F, mem *virtqtest.Memory, ring *virtqtest.Ring) {
	const data = fuzzBase + fuzzPage
	for _, indirect := range []bool{false, true} {
		d := virtqtest.NewDriver(ring)
		d.Reset(3)
		for i := range uint64(4) {
			ds := []virtq.Desc{readable(data, 16), readable(data+fuzzPage-8, 512),
				writable(data+16, 1)}
			var err error
			if indirect {
				_, err = d.AddIndirect(data+0x800+64*i, ds...)
			} else {
				_, err = d.Add(ds...)
			}
			test.Must(f, err)
		}
		d.Expose()
		var raw []byte
		for p := range uint64(3) {
			raw = append(raw, mem.Bytes(fuzzBase+p*fuzzPage, fuzzPage)...)
		}
		f.Add(raw[:fuzzPage+0xa00], uint16(3), indirect, !indirect)
		d.SetAvailIdx(40)
		f.Add(raw[:0x200], uint16(0xffff), indirect, indirect)
	}
}

// FuzzChain takes one chain whose descriptors, direct and indirect, are the fuzzer's, with
// addresses folded into or just around guest memory so that most are valid.
func FuzzChain(f *testing.F) {
	mem, err := virtqtest.NewMemory(virtqtest.Layout(fuzzBase, fuzzPage, fuzzPage, fuzzPage)...)
	test.Must(f, err)
	f.Cleanup(func() { mem.Close() })
	table, err := mem.Table()
	test.Must(f, err)
	f.Cleanup(table.Release)
	ring, err := virtqtest.NewRing(mem, fuzzNum, fuzzBase)
	test.Must(f, err)
	f.Add([]byte{0, 16, 16, 0, 1, 1, 0, 16, 1, 0, 2, 0}, uint8(0), true)
	f.Add([]byte{0, 32, 48, 0, 4, 0, 0, 16, 1, 0, 2, 0}, uint8(1), true)
	f.Fuzz(func(t *testing.T, raw []byte, direct uint8, indirect bool) {
		ring.Clear()
		tableLen := uint64(0)
		for i := 0; len(raw) >= 6; i, raw = i+1, raw[6:] {
			d := virtq.Desc{
				Addr:  fuzzBase - 8 + uint64(binary.LittleEndian.Uint16(raw))%(3*fuzzPage+32),
				Len:   uint32(binary.LittleEndian.Uint16(raw[2:])),
				Flags: uint16(raw[4]),
				Next:  uint16(raw[5]),
			}
			if i < fuzzNum && i <= int(direct) {
				ring.SetDesc(uint16(i), d)
			} else if tableLen < fuzzPage/16 {
				ring.WriteTable(fuzzBase+fuzzPage+16*tableLen, []virtq.Desc{d})
				tableLen++
			}
		}
		desc, avail, used, err := virtq.MapSplit(table, fuzzNum, mem.User(ring.Desc),
			mem.User(ring.Avail), mem.User(ring.Used))
		test.Must(t, err)
		q, err := virtq.NewSplit(virtq.SplitConfig{Num: fuzzNum, Desc: desc, Avail: avail,
			Used: used, Indirect: indirect})
		test.Must(t, err)
		var c virtq.Chain
		if q.Load(table, &c) == nil {
			checkChain(t, &c)
		}
	})
}
