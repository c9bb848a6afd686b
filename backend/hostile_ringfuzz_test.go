package backend

import (
	"encoding/binary"
	"os"
	"strings"
	"testing"
	"time"

	"cowblk/eventfd"
	"cowblk/internal/test"
	"cowblk/vhost"
	"cowblk/vhost/blk"
	"cowblk/vhost/virtq"
)

// ringRig is a live queue whose driver is hostile, beside a healthy disk.
type ringRig struct {
	*attacker
	avail uint16 // where the ring stands
	cuts  []*os.File
}

func newRingRig(t testing.TB) *ringRig {
	r := &ringRig{attacker: newAttacker(t, newTarget(t, targetDisk, DeviceOptions{}))}
	for _, fd := range r.mem.FDs() {
		f, err := os.OpenFile(fdPath(fd), os.O_RDWR, 0)
		test.Must(t, err)
		t.Cleanup(func() { f.Close() })
		r.cuts = append(r.cuts, f)
	}
	r.run()
	return r
}

// execute lets the queue have what in says: sound chains of which then some fields are changed,
// before and while the queue reads them; a memory file that is cut, a region that goes. Afterwards
// the queue has taken all, or is broken and has said so.
func (r *ringRig) execute(t testing.TB, raw []byte) {
	r.t = t
	in := &input{raw}
	how := in.byte()
	clear(r.mem.Bytes(atkBase, uint64(virtq.DescTableSize(atkNum))))
	chains := 1 + in.n(4)
	next := uint16(0)
	for i := range chains {
		if head, ok := r.chain(in, uint64(i), &next); ok {
			r.ring.SetAvail(r.avail+uint16(i), head)
		}
	}
	for range in.n(4) {
		r.spoil(in)
	}
	jump := uint16(0)
	if in.one(16) {
		jump = uint16(in.odd())
	}
	broken := r.to.dev.Stats().Broken
	r.ring.SetAvailIdx(r.avail + uint16(chains) + jump)
	_ = eventfd.Signal(r.kick)
	if how&1 != 0 { // races
		for range in.n(64) {
			r.spoil(in)
		}
	}
	removed := how&0xe == 0xe && in.one(2)
	if removed {
		r.tell(vhost.RemMemReg, vhost.AppendMemReg(nil, r.mem.Regions()[1]))
	}
	if how&0x70 == 0x70 {
		test.Must(t, r.cuts[1].Truncate(int64(in.n(2))*4096))
		for range in.n(8) {
			r.to.dev.Stats()
		}
		test.Must(t, r.cuts[1].Truncate(atkRegion))
	}
	_ = eventfd.Signal(r.kick)
	if r.waitDone() {
		test.Equal(t, r.to.dev.Stats().Broken, broken+1, "broken queues counted")
		if !drain(r.err) {
			t.Error("the queue broke and did not signal its error eventfd")
		}
		r.restart()
		r.avail = 0
	} else {
		r.avail = r.ring.AvailIdx()
	}
	if removed {
		r.tell(vhost.AddMemReg, vhost.AppendMemReg(nil, r.mem.Regions()[1]), r.mem.FDs()[1])
	}
}

// waitDone waits until the queue has taken and completed all that is available (false) or is broken
// (true).
func (r *ringRig) waitDone() (broken bool) {
	r.t.Helper()
	w := r.to.dev.worker(0)
	for end := time.Now().Add(patience); ; {
		rest := false
		w.runScheduledAndWait(func() {
			broken = w.broken != nil
			rest = w.inflight == 0 && w.ring.Base() == r.ring.AvailIdx()
		})
		if broken || rest {
			return broken
		}
		if time.Now().After(end) {
			r.t.Fatalf("the queue neither completes nor breaks: %+v", r.to.dev.Stats())
		}
	}
}

// chain lays request i out, from descriptor *next on, and returns its head.
func (r *ringRig) chain(in *input, i uint64, next *uint16) (head uint16, ok bool) {
	types := [...]uint32{blk.TypeIn, blk.TypeOut, blk.TypeFlush, blk.TypeGetID, blk.TypeDiscard,
		blk.TypeWriteZeroes, 2, 1 << 31}
	typ := types[in.n(len(types))]
	shape := in.byte()
	sector := uint64(in.n(256)) * 8
	if shape&0x80 != 0 {
		sector = in.odd()
	}
	write := uint16(0)
	if typ == blk.TypeIn || typ == blk.TypeGetID {
		write = virtq.DescWrite
	}
	var data []virtq.Desc
	for range in.n(4) {
		// Mostly whole sectors near the border of the regions.
		d := virtq.Desc{Addr: atkData + 512*uint64(in.byte()), Len: 512 * uint32(1+in.n(16)),
			Flags: write}
		if typ == blk.TypeDiscard || typ == blk.TypeWriteZeroes {
			b := r.mem.Bytes(atkBase+0xe000, 64)
			binary.LittleEndian.PutUint64(b, sector)
			binary.LittleEndian.PutUint32(b[8:], uint32(in.n(32)))
			binary.LittleEndian.PutUint32(b[12:], uint32(in.n(3)))
			d.Addr, d.Len = atkBase+0xe000, 16
		}
		data = append(data, d)
	}
	ds := r.request(i, typ, sector, data...)
	if shape&1 != 0 { // the header in two pieces
		ds = append([]virtq.Desc{{Addr: ds[0].Addr, Len: 7}, {Addr: ds[0].Addr + 7, Len: 9}},
			ds[1:]...)
	}
	if shape&6 != 0 { // all or some of it in an indirect table
		table := atkTable + 0x200*i
		direct := 0
		if shape&6 == 6 {
			direct = 1
		}
		for k := direct; k+1 < len(ds); k++ {
			ds[k].Flags |= virtq.DescNext
			ds[k].Next = uint16(k + 1 - direct)
		}
		r.ring.WriteTable(table, ds[direct:])
		ds = append(ds[:direct], virtq.Desc{Addr: table,
			Len: uint32(virtq.DescSize * (len(ds) - direct)), Flags: virtq.DescIndirect})
	}
	if int(*next)+len(ds) > atkNum {
		return 0, false
	}
	r.link(*next, ds)
	head = *next
	*next += uint16(len(ds))
	return head, true
}

// spoil changes one field that the device reads, or would if it believed it.
func (r *ringRig) spoil(in *input) {
	v := in.odd()
	switch in.n(10) {
	case 0, 1, 2: // a field of a descriptor
		r.field(r.mem.Bytes(atkBase+16*uint64(in.n(atkNum)), 16), in.n(4), v)
	case 3, 4: // of an indirect table
		r.field(r.mem.Bytes(atkTable+16*uint64(in.byte()), 16), in.n(4), v)
	case 5: // of a header or a segment
		at := atkMeta + 16*uint64(in.n(4))
		if in.one(4) {
			at = atkBase + 0xe000
		}
		r.field(r.mem.Bytes(at, 16), in.n(4), v)
	case 6: // an entry of the available ring
		r.ring.SetAvail(uint16(in.n(atkNum)), uint16(v))
	case 7:
		r.ring.SetAvailFlags(uint16(v))
		r.ring.SetUsedEvent(uint16(v >> 16))
	case 8: // what is the device's to write
		used := r.mem.Bytes(r.ring.Used, uint64(virtq.UsedSize(atkNum)))
		binary.LittleEndian.PutUint16(used[2*in.n(len(used)/2):], uint16(v))
	case 9: // the index itself, seldom far
		if in.one(4) {
			r.ring.SetAvailIdx(uint16(v))
			return
		}
		r.ring.SetAvailIdx(r.ring.AvailIdx() + 1)
	}
}

// field writes v to a part of 16 bytes: eight, then four, two and two.
func (r *ringRig) field(b []byte, i int, v uint64) {
	switch i {
	case 0:
		binary.LittleEndian.PutUint64(b, v)
	case 1:
		binary.LittleEndian.PutUint32(b[8:], uint32(v))
	case 2:
		binary.LittleEndian.PutUint16(b[12:], uint16(v))
	default:
		binary.LittleEndian.PutUint16(b[14:], uint16(v))
	}
}

// after checks what an attack must not have changed.
func (r *ringRig) after(t testing.TB) {
	t.Helper()
	r.t = t
	test.Check(t, r.leave(), "session")
	if st, err := os.Stat(r.to.data); err != nil || st.Size() > targetDisk {
		t.Errorf("the disk's file has %d bytes, %v; the disk has %d", st.Size(), err, targetDisk)
	}
	if n := strings.Count(r.to.log.text(), "\n"); n > 0 {
		t.Errorf("a log line has %d line breaks", n)
	}
}

// ringSeeds are sound and nearly sound requests in the form that execute reads.
func ringSeeds() [][]byte {
	seeds := [][]byte{{}}
	for typ := range byte(8) {
		for _, shape := range []byte{0, 1, 2, 4, 6, 7, 0x80, 0x82} {
			seeds = append(seeds,
				[]byte{0, 0, typ, shape, 8, 1, 4, 3, 0, 0},
				[]byte{1, 3, typ, shape, 8, 2, 4, 3, 5, 3, typ, shape, 9, 1, 7, 1, 0, 0, 0, 9, 63,
					25, 2, 3, 1},
				[]byte{0x70, 1, typ, shape, 8, 3, 60, 3, 61, 3, 62, 3, 0, 0, 1, 4},
				[]byte{0xe, 0, typ, shape, 8, 1, 60, 3, 0, 0, 1})
		}
	}
	return seeds
}

// FuzzHostileRing: whatever a driver writes into guest memory, also while it is read, its queue
// goes on or breaks, and nothing else does.
func FuzzHostileRing(f *testing.F) {
	crowd, r := newCrowd(f, time.Millisecond), newRingRig(f)
	for _, s := range ringSeeds() {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		r.execute(t, in)
		r.t = f
		crowd.check(t)
	})
}

// TestHostileRing is FuzzHostileRing with generated inputs, for as long as COWBLK_FUZZ_SECONDS and
// COWBLK_FUZZ_EXECS say.
func TestHostileRing(t *testing.T) {
	before := openFiles(t)
	t.Run("attack", func(t *testing.T) {
		crowd := newCrowd(t, time.Millisecond)
		var rigs []*ringRig
		var bodies []func(in []byte)
		for range lanes {
			r := newRingRig(t)
			rigs = append(rigs, r)
			bodies = append(bodies, func(in []byte) { r.execute(t, in) })
		}
		generate(t, "FuzzHostileRing", ringSeeds(), bodies, func() { crowd.check(t) })
		broken := uint64(0)
		for _, r := range rigs {
			broken += r.to.dev.Stats().Broken
			r.after(t)
		}
		crowd.report(t)
		t.Logf("%d queues broke", broken)
		if n := goroutines("(*worker).run("); n != 1 {
			t.Errorf("%d queues run, expected the healthy one", n)
		}
	})
	sameFiles(t, before)
}
