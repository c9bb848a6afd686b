package backend

import (
	"encoding/binary"
	"fmt"
	"math"
	"testing"

	"cowblk/eventfd"
	"cowblk/vhost"
	"cowblk/vhost/blk"
	"cowblk/vhost/virtq"
	"cowblk/vhost/virtq/virtqtest"
)

// breaks is the outcome of what breaks a queue; other outcomes are statuses.
const breaks = -1

// Requests that no sound driver makes, each to a live queue. It breaks, and says so in every way it
// has, or the request ends with a status; either way the queue serves the next sound request, if
// need be after a restart.
func TestHostileRequests(t *testing.T) {
	const sectors = targetDisk / 512
	const hole = atkEnd // nothing is there
	data := virtq.Desc{Addr: atkData, Len: 512}
	room := virtq.Desc{Addr: atkData, Len: 512, Flags: virtq.DescWrite}
	next, write, indirect := uint16(virtq.DescNext), uint16(virtq.DescWrite),
		uint16(virtq.DescIndirect)
	// raw descriptors from 0 on, of which the head is 0.
	raw := func(ds ...virtq.Desc) func(*attacker) {
		return func(a *attacker) {
			for i, d := range ds {
				a.ring.SetDesc(uint16(i), d)
			}
			a.ring.Offer(0)
		}
	}
	// chain is a linked request, of which edit may change the descriptors.
	chain := func(typ uint32, sector uint64, edit func(ds []virtq.Desc) []virtq.Desc,
		parts ...virtq.Desc) func(*attacker) {
		return func(a *attacker) {
			ds := a.request(0, typ, sector, parts...)
			if edit != nil {
				ds = edit(ds)
			}
			a.link(0, ds)
			a.ring.Offer(0)
		}
	}
	// table is an indirect table that edit may change, and its size in bytes.
	table := func(size uint32, edit func(ds []virtq.Desc)) func(*attacker) {
		return func(a *attacker) {
			ds := a.request(0, blk.TypeIn, 0, room)
			for i := range ds[:len(ds)-1] {
				ds[i].Flags |= next
				ds[i].Next = uint16(i + 1)
			}
			if edit != nil {
				edit(ds)
			}
			a.ring.WriteTable(atkTable, ds)
			a.ring.SetDesc(0, virtq.Desc{Addr: atkTable, Len: size, Flags: indirect})
			a.ring.Offer(0)
		}
	}
	segments := func(typ uint32, segs ...[3]uint64) func(*attacker) {
		return func(a *attacker) {
			b := a.mem.Bytes(atkData, uint64(16*len(segs)))
			for i, s := range segs {
				binary.LittleEndian.PutUint64(b[16*i:], s[0])
				binary.LittleEndian.PutUint32(b[16*i+8:], uint32(s[1]))
				binary.LittleEndian.PutUint32(b[16*i+12:], uint32(s[2]))
			}
			chain(typ, 0, nil, virtq.Desc{Addr: atkData, Len: uint32(16 * len(segs))})(a)
		}
	}
	many := make([][3]uint64, maxRangeSegs+1)
	for _, tc := range []struct {
		name string
		do   func(*attacker)
		want int
	}{
		{"a sound request", chain(blk.TypeIn, 0, nil, room), 0},

		{"loop of one", raw(virtq.Desc{Addr: atkMeta, Len: 16, Flags: next}), breaks},
		{"loop of two", raw(virtq.Desc{Addr: atkMeta, Len: 16, Flags: next, Next: 1},
			virtq.Desc{Addr: atkData, Len: 1, Flags: next}), breaks},
		{"loop of empty ones", raw(virtq.Desc{Flags: next, Next: 1}, virtq.Desc{Flags: next}),
			breaks},
		{"longer than the ring", func(a *attacker) {
			for i := range uint16(atkNum) {
				a.ring.SetDesc(i, virtq.Desc{Addr: atkData, Len: 1, Flags: next,
					Next: (i + 1) % atkNum})
			}
			a.ring.Offer(3)
		}, breaks},
		{"next beyond the ring", raw(virtq.Desc{Addr: atkMeta, Len: 16, Flags: next, Next: atkNum}),
			breaks},
		{"next far beyond", raw(virtq.Desc{Addr: atkMeta, Len: 16, Flags: next, Next: 0xffff}),
			breaks},
		{"avail index jumps by the ring and one",
			func(a *attacker) { a.ring.SetAvailIdx(a.ring.AvailIdx() + atkNum + 1) }, breaks},
		{"avail index goes back", func(a *attacker) { a.ring.SetAvailIdx(a.ring.AvailIdx() - 1) },
			breaks},
		{"avail index jumps half around",
			func(a *attacker) { a.ring.SetAvailIdx(a.ring.AvailIdx() + 0x8000) }, breaks},
		{"head beyond the ring", func(a *attacker) { a.ring.Offer(atkNum) }, breaks},
		{"head 65535", func(a *attacker) { a.ring.Offer(0xffff) }, breaks},

		{"data the device is to read after what it is to write",
			chain(blk.TypeOut, 0, func(ds []virtq.Desc) []virtq.Desc {
				return []virtq.Desc{ds[0], ds[2], ds[1]}
			}, data), breaks},
		{"header for the device to write", chain(blk.TypeIn, 0, func(ds []virtq.Desc) []virtq.Desc {
			ds[0].Flags |= write
			return ds
		}, room), breaks},
		{"status for the device to read", chain(blk.TypeOut, 0, func(ds []virtq.Desc) []virtq.Desc {
			ds[2].Flags = 0
			return ds
		}, data), breaks},
		{"no status", chain(blk.TypeOut, 0, func(ds []virtq.Desc) []virtq.Desc { return ds[:2] },
			data), breaks},
		{"no header", chain(blk.TypeIn, 0, func(ds []virtq.Desc) []virtq.Desc { return ds[1:] },
			room), breaks},
		{"short header", chain(blk.TypeIn, 0, func(ds []virtq.Desc) []virtq.Desc {
			ds[0].Len = 15
			return ds
		}, room), breaks},
		{"empty chain", raw(virtq.Desc{}), breaks},
		{"read with nothing to write to but the status", chain(blk.TypeIn, 0, nil, data), 0},
		{"write with the data on the wrong side", chain(blk.TypeOut, 0, nil, room), 0},

		{"data outside memory", chain(blk.TypeIn, 0, nil, virtq.Desc{Addr: hole, Len: 512,
			Flags: write}), breaks},
		{"data at address 0", chain(blk.TypeIn, 0, nil, virtq.Desc{Len: 512, Flags: write}),
			breaks},
		{"data that runs out of memory", chain(blk.TypeIn, 0, nil, virtq.Desc{Addr: hole - 256,
			Len: 512, Flags: write}), breaks},
		{"data that crosses regions", chain(blk.TypeIn, 0, nil, virtq.Desc{Addr: atkBorder - 256,
			Len: 512, Flags: write}), 0},
		{"address wraps", chain(blk.TypeIn, 0, nil, virtq.Desc{Addr: math.MaxUint64 - 511,
			Len: 1024, Flags: write}), breaks},
		{"length 2^32-1", chain(blk.TypeIn, 0, nil, virtq.Desc{Addr: atkData, Len: math.MaxUint32,
			Flags: write}), breaks},
		{"lengths add up to more than 4 GiB", chain(blk.TypeIn, 0, nil, virtq.Desc{Addr: atkBase,
			Len: 1 << 31, Flags: write}, virtq.Desc{Addr: atkBase, Len: 1 << 31, Flags: write}),
			breaks},
		{"status outside memory", chain(blk.TypeFlush, 0, func(ds []virtq.Desc) []virtq.Desc {
			ds[1].Addr = hole
			return ds
		}), breaks},
		{"empty descriptors nowhere", chain(blk.TypeIn, 0, nil, virtq.Desc{Addr: hole,
			Flags: write}, room), 0},

		{"indirect", table(48, nil), 0},
		{"indirect, empty", table(0, nil), breaks},
		{"indirect, not whole", table(47, nil), breaks},
		{"indirect, shorter than its chain", table(32, nil), breaks},
		{"indirect, longer than allowed", table(16*(virtq.MaxChain+1), nil), breaks},
		{"indirect, longest", table(1<<32-16, nil), breaks},
		{"indirect, nested", table(48, func(ds []virtq.Desc) { ds[1].Flags |= indirect }), breaks},
		{"indirect, loop", table(48, func(ds []virtq.Desc) { ds[1].Next = 0 }), breaks},
		{"indirect, data outside", table(48, func(ds []virtq.Desc) { ds[1].Addr = hole }), breaks},
		{"indirect table outside memory", raw(virtq.Desc{Addr: hole, Len: 48, Flags: indirect}),
			breaks},
		{"indirect table across regions", raw(virtq.Desc{Addr: atkBorder - 16, Len: 48,
			Flags: indirect}), breaks},
		{"indirect with next", raw(virtq.Desc{Addr: atkTable, Len: 48, Flags: indirect | next,
			Next: 1}), breaks},

		{"read of the last sector", chain(blk.TypeIn, sectors-1, nil, room), 0},
		{"read beyond the end", chain(blk.TypeIn, sectors, nil, room), 1},
		{"write beyond the end", chain(blk.TypeOut, sectors, nil, data), 1},
		{"read over the end", chain(blk.TypeIn, sectors-1, nil, room, room), 1},
		{"sector wraps", chain(blk.TypeIn, math.MaxUint64, nil, room, room), 1},
		{"sector as bytes wraps", chain(blk.TypeOut, 1<<55, nil, data), 1},
		{"sector as signed bytes wraps", chain(blk.TypeOut, 1<<54, nil, data), 1},
		{"part of a sector", chain(blk.TypeOut, 0, nil, virtq.Desc{Addr: atkData, Len: 511}), 1},

		{"identifier, no room", chain(blk.TypeGetID, 0, nil, virtq.Desc{Addr: atkData, Len: 19,
			Flags: write}), 1},
		{"unknown type", chain(77, 0, nil, room), 2},
		{"SCSI", chain(2, 0, nil, room), 2},
		{"barrier bit", chain(blk.TypeOut|1<<31, 0, nil, data), 2},

		{"discard", segments(blk.TypeDiscard, [3]uint64{0, 8, 0}), 0},
		{"discard, unknown flag", segments(blk.TypeDiscard, [3]uint64{0, 8, 2}), 2},
		{"discard, unmap flag", segments(blk.TypeDiscard, [3]uint64{0, 8, 1}), 2},
		{"discard, all flags", segments(blk.TypeDiscard, [3]uint64{0, 8, math.MaxUint32}), 2},
		{"discard beyond the end", segments(blk.TypeDiscard, [3]uint64{sectors, 1, 0}), 1},
		{"discard over the end", segments(blk.TypeDiscard, [3]uint64{sectors - 1, 2, 0}), 1},
		{"discard, sector wraps", segments(blk.TypeDiscard, [3]uint64{math.MaxUint64, 2, 0}), 1},
		{"discard, too long", segments(blk.TypeDiscard, [3]uint64{0, maxRangeSectors + 1, 0}), 1},
		{"discard, too many segments", segments(blk.TypeDiscard, many...), 1},
		{"discard, no segment", chain(blk.TypeDiscard, 0, nil), 1},
		{"discard, half a segment", chain(blk.TypeDiscard, 0, nil, virtq.Desc{Addr: atkData,
			Len: 8}), 1},
		{"zeroes, unknown flag", segments(blk.TypeWriteZeroes, [3]uint64{0, 8, 4}), 2},
		{"zeroes beyond the end", segments(blk.TypeWriteZeroes, [3]uint64{sectors, 1, 1}), 1},
		{"one good segment and one bad", segments(blk.TypeWriteZeroes, [3]uint64{8, 8, 0},
			[3]uint64{sectors, 1, 0}), 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			a := newAttacker(t, newTarget(t, targetDisk, DeviceOptions{}))
			a.run()
			used := a.ring.UsedIdx()
			a.mem.Bytes(atkStatus, 1)[0] = 0xee
			tc.do(a)
			_ = eventfd.Signal(a.kick)
			broken := a.outcome(used + 1)
			if broken != (tc.want == breaks) {
				t.Fatalf("broken: %t, status %#x; %s", broken, a.status(0), a.to.log.text())
			}
			stats := a.to.dev.Stats()
			if broken {
				if stats.Broken != 1 || a.to.log.lines.Load() != 1 {
					t.Errorf("%d broken queues counted and %d lines logged, expected 1 and 1",
						stats.Broken, a.to.log.lines.Load())
				}
				if v := a.ask(vhost.GetStatus, nil); v&0x40 == 0 {
					t.Errorf("device status %#x, expected DEVICE_NEEDS_RESET", v)
				}
			} else if int(a.status(0)) != tc.want {
				t.Errorf("status %#x, expected %#x", a.status(0), tc.want)
			}
			if tc.want > 0 && stats.Refused != 1 {
				t.Errorf("%d refused requests counted, expected 1", stats.Refused)
			}
			a.restart()
			if v := a.ask(vhost.GetStatus, nil); v&0x40 != 0 {
				t.Errorf("device status %#x after the restart", v)
			}
			a.write(16)
		})
	}
}

// Places, sizes and indexes of rings that are wrong. What is wrong beyond doubt is refused at the
// start, the rest breaks at the first look; a ring with an odd but possible place runs.
func TestHostileRings(t *testing.T) {
	const refused, broken, runs = "refused", "broken", "runs"
	user := uint64(virtqtest.UserBase)
	for _, tc := range []struct {
		name              string
		num               uint32
		desc, avail, used uint64
		base              uint32
		want              string
	}{
		{"sound", 16, atkBase, atkBase + 0x1000, atkBase + 0x2000, 0, runs},
		{"all at one place", 16, atkBase, atkBase, atkBase, 0, runs},
		{"at the end of a region", 16, atkBorder - 256, atkBase, atkBase + 0x1000, 0, runs},
		{"over the end of a region", 16, atkBorder - 128, atkBase, atkBase + 0x1000, 0, refused},
		{"used ring over the end by two bytes", 16, atkBase, atkBase + 0x1000, atkBorder - 132, 0,
			refused},
		{"descriptors outside memory", 16, atkEnd + 1<<32, atkBase, atkBase, 0, refused},
		{"available ring outside memory", 16, atkBase, 1 << 46, atkBase, 0, refused},
		{"used ring outside memory", 16, atkBase, atkBase, 1 << 46, 0, refused},
		{"a guest address", 16, atkBase - user, atkBase, atkBase, 0, refused},
		{"the last addresses", 16, math.MaxUint64 - 255 - user, atkBase, atkBase, 0, refused},
		{"descriptors at 8", 16, atkBase + 8, atkBase, atkBase, 0, refused},
		{"available ring at 2", 16, atkBase, atkBase + 2, atkBase, 0, refused},
		{"used ring at 2", 16, atkBase, atkBase, atkBase + 2, 0, refused},
		{"no descriptors", 0, atkBase, atkBase, atkBase, 0, refused},
		{"17 descriptors", 17, atkBase, atkBase, atkBase, 0, refused},
		{"1024 descriptors", 1024, atkBase, atkBase + 0x4000, atkBase + 0x6000, 0, runs},
		{"2048 descriptors", 2048, atkBase, atkBase, atkBase, 0, refused},
		{"65552 descriptors", 65552, atkBase, atkBase, atkBase, 0, refused},
		{"base behind the ring's index", 16, atkBase, atkBase + 0x1000, atkBase + 0x2000, 1,
			broken},
		{"base anywhere", 16, atkBase, atkBase + 0x1000, atkBase + 0x2000, 0x7ead, broken},
		// the entry is no request
		{"base before", 16, atkBase, atkBase + 0x1000, atkBase + 0x2000, 65535, broken},
		{"base 65536", 16, atkBase, atkBase + 0x1000, atkBase + 0x2000, 65536, refused},
	} {
		t.Run(tc.name, func(t *testing.T) {
			to := newTarget(t, targetDisk, DeviceOptions{})
			a := newAttacker(t, to)
			a.negotiate()
			addr := vhost.VringAddr{Desc: user + tc.desc, Avail: user + tc.avail,
				Used: user + tc.used}
			got := runs
			for _, m := range []message{
				{vhost.SetVringErr, u64(0), []byte{1}},
				{vhost.SetVringNum, vringState(0, tc.num), nil},
				{vhost.SetVringBase, vringState(0, tc.base), nil},
				{vhost.SetVringAddr, addr.Append(nil), nil},
				{vhost.SetVringEnable, vringState(0, 1), nil},
				{vhost.SetVringKick, u64(0), []byte{0}},
			} {
				var fds []int
				for _, k := range m.fds {
					fds = append(fds, []int{a.kick, a.err}[k])
				}
				if a.ask(m.request, m.payload, fds...) != 0 {
					got = refused
				}
			}
			if got == runs {
				_ = eventfd.Signal(a.kick)
				// the queue has looked at least once when this is answered
				a.tell(vhost.SetVringCall, u64(0), a.call)
				a.tell(vhost.SetVringCall, u64(0), a.call)
				if to.dev.Stats().Broken > 0 {
					got = broken
				}
			}
			if got != tc.want {
				t.Errorf("%s, expected %s; %s", got, tc.want, to.log.text())
			}
			if err := a.leave(); err != nil {
				t.Error(fmt.Errorf("session: %w", err))
			}
		})
	}
}
