package backend

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"cowblk/cow"
	"cowblk/eventfd"
	"cowblk/internal/test"
	"cowblk/vhost"
	"cowblk/vhost/blk"
	"cowblk/vhost/virtq"
	"cowblk/vhost/virtq/virtqtest"
)

const targetDisk = 4 << 20 // bytes

func putHeader(b []byte, typ uint32, sector uint64) {
	binary.LittleEndian.PutUint32(b, typ)
	binary.LittleEndian.PutUint32(b[4:], 0)
	binary.LittleEndian.PutUint64(b[8:], sector)
}

// cut takes region i's file away but for its first n bytes.
func (a *attacker) cut(i int, n int64) {
	a.t.Helper()
	test.Must(a.t, os.Truncate(fdPath(a.mem.FDs()[i]), n))
}

func fdPath(fd int) string { return filepath.Join("/proc/self/fd", strconv.Itoa(fd)) }

// A region's file is cut while it is in use. Whatever part of a request is gone, the fault is the
// request's or the queue's, the queue can be stopped, and the session goes on.
func TestMemoryCutUnderARequest(t *testing.T) {
	const lost = atkBorder + 0x8000 // in the second region, which is cut to nothing
	in, out := virtq.Desc{Addr: lost, Len: 4096, Flags: virtq.DescWrite}, virtq.Desc{Addr: lost,
		Len: 4096}
	for _, tc := range []struct {
		name   string
		chain  func(a *attacker) []virtq.Desc
		status byte // if the queue does not break
		broken bool
	}{
		{"data of a read", func(a *attacker) []virtq.Desc {
			return a.request(0, blk.TypeIn, 8, in)
		}, 1, false},
		{"data of a read that was read before", func(a *attacker) []virtq.Desc {
			a.warm(8)
			return a.request(0, blk.TypeIn, 8, in)
		}, 1, false},
		{"data of a long read", func(a *attacker) []virtq.Desc {
			in := in
			in.Len = 0x10000
			return a.request(0, blk.TypeIn, 8, in)
		}, 1, false},
		{"data of a first write", func(a *attacker) []virtq.Desc {
			return a.request(0, blk.TypeOut, 8, out)
		}, 1, false},
		{"data of a partial first write", func(a *attacker) []virtq.Desc {
			out := out
			out.Len = 512
			return a.request(0, blk.TypeOut, 17, out)
		}, 1, false},
		{"data of an overwrite", func(a *attacker) []virtq.Desc {
			a.write(16)
			return a.request(0, blk.TypeOut, 16, out)
		}, 1, false},
		{"a later piece of data", func(a *attacker) []virtq.Desc {
			return a.request(0, blk.TypeOut, 16, virtq.Desc{Addr: atkData, Len: 4096}, out)
		}, 1, false},
		{"room for the identifier", func(a *attacker) []virtq.Desc {
			in := in
			in.Len = 20
			return a.request(0, blk.TypeGetID, 0, in)
		}, 0, true},
		{"segments of a discard", func(a *attacker) []virtq.Desc {
			out := out
			out.Len = 16
			return a.request(0, blk.TypeDiscard, 0, out)
		}, 0, true},
		{"header", func(a *attacker) []virtq.Desc {
			ds := a.request(0, blk.TypeIn, 0, virtq.Desc{Addr: atkData, Len: 512,
				Flags: virtq.DescWrite})
			ds[0].Addr = lost
			return ds
		}, 0, true},
		{"half of the header", func(a *attacker) []virtq.Desc {
			ds := a.request(0, blk.TypeIn, 0)
			ds[0].Len = 8
			return append([]virtq.Desc{ds[0], {Addr: lost, Len: 8}}, ds[1:]...)
		}, 0, true},
		{"status of a read", func(a *attacker) []virtq.Desc {
			ds := a.request(0, blk.TypeIn, 0, virtq.Desc{Addr: atkData, Len: 512,
				Flags: virtq.DescWrite})
			ds[2].Addr = lost
			return ds
		}, 0, true},
		{"status of a request that is refused", func(a *attacker) []virtq.Desc {
			ds := a.request(0, 99, 0)
			ds[1].Addr = lost
			return ds
		}, 0, true},
		{"status of a flush", func(a *attacker) []virtq.Desc {
			ds := a.request(0, blk.TypeFlush, 0)
			ds[1].Addr = lost
			return ds
		}, 0, true},
		{"indirect table", func(*attacker) []virtq.Desc {
			return []virtq.Desc{{Addr: lost, Len: 48, Flags: virtq.DescIndirect}}
		}, 0, true},
	} {
		cut := func(t *testing.T, to *target) {
			a := newAttacker(t, to)
			a.run()
			chain := tc.chain(a)
			a.link(4, chain)
			used := a.ring.UsedIdx()
			a.cut(1, 0)
			a.offer(4)
			if broken := a.outcome(used + 1); broken != tc.broken {
				t.Fatalf("broken: %t, expected %t", broken, tc.broken)
			}
			if !tc.broken && a.status(0) != tc.status {
				t.Errorf("status %#x, expected %#x", a.status(0), tc.status)
			}
			want := uint64(0)
			if tc.broken {
				want = 1
			}
			test.Equal(t, a.to.dev.Stats().Broken, want, "broken queues counted")
			// The queue starts again, and serves what lies in what is left.
			a.restart()
			a.write(24)
		}
		t.Run(tc.name, func(t *testing.T) { cut(t, newTarget(t, targetDisk, DeviceOptions{})) })
		// The kernel's asynchronous I/O meets the hole instead of our own calls.
		t.Run(tc.name+", direct I/O", func(t *testing.T) {
			cut(t, openTarget(t, targetDisk, DeviceOptions{}, cow.Options{Direct: true,
				LoseUnflushed: true}))
		})
	}
}

// warm reads a block twice, so that it is believed to be in memory.
func (a *attacker) warm(sector uint64) {
	a.t.Helper()
	for range 2 {
		a.do(blk.TypeIn, sector, virtq.Desc{Addr: atkData, Len: 4096, Flags: virtq.DescWrite})
	}
}

// write writes a block whose data is not going to be lost.
func (a *attacker) write(sector uint64) {
	a.t.Helper()
	a.do(blk.TypeOut, sector, virtq.Desc{Addr: atkData, Len: 4096})
}

// do carries one request out, which must succeed.
func (a *attacker) do(typ uint32, sector uint64, data ...virtq.Desc) {
	a.t.Helper()
	used := a.ring.UsedIdx()
	a.link(0, a.request(9, typ, sector, data...))
	a.offer(0)
	if a.outcome(used+1) || a.status(9) != 0 {
		a.t.Fatalf("request of type %d: status %#x", typ, a.status(9))
	}
}

// Many requests complete at once and none of their status bytes can be written: the first fault
// breaks the queue, and it still comes to rest.
func TestMemoryCutUnderManyCompletions(t *testing.T) {
	for _, typ := range []uint32{blk.TypeIn, blk.TypeOut, blk.TypeFlush} {
		for range 5 {
			a := newAttacker(t, newTarget(t, targetDisk, DeviceOptions{}))
			a.run()
			for i := range uint16(5) {
				data := virtq.Desc{Addr: atkData, Len: 4096}
				if typ == blk.TypeIn {
					data.Flags = virtq.DescWrite
				}
				ds := a.request(uint64(i), typ, 8*uint64(i), data)
				if typ == blk.TypeFlush {
					ds = a.request(uint64(i), typ, 0)
				}
				ds[len(ds)-1].Addr = atkBorder + uint64(i)
				a.link(3*i, ds)
				a.ring.SetAvail(i, 3*i)
			}
			a.cut(1, 0)
			a.ring.SetAvailIdx(5)
			_ = eventfd.Signal(a.kick)
			a.broke()
			test.Must(t, a.leave())
		}
	}
}

// The parts of the ring itself go, one at a time, under a running queue and before it starts.
func TestMemoryCutUnderTheRing(t *testing.T) {
	for _, part := range []string{"descriptors", "available ring", "used ring", "all"} {
		for _, when := range []string{"running", "before the start"} {
			t.Run(part+", "+when, func(t *testing.T) {
				a := newAttacker(t, newTarget(t, targetDisk, DeviceOptions{}))
				desc, avail, used := uint64(atkBase), uint64(atkBase+0x1000), uint64(atkBase+0x2000)
				switch part {
				case "descriptors":
					desc = atkBorder
				case "available ring":
					avail = atkBorder
				case "used ring":
					used = atkBorder
				default:
					desc, avail, used = atkBorder, atkBorder+0x1000, atkBorder+0x2000
				}
				ring, err := virtqtest.NewRingAt(a.mem, atkNum, desc, avail, used)
				test.Must(t, err)
				a.ring = ring
				a.link(0, a.request(0, blk.TypeFlush, 0))
				a.ring.Offer(0)
				a.negotiate()
				a.setRing()
				if when == "running" {
					a.tell(vhost.SetVringBase, vringState(0, 1))
					a.tell(vhost.SetVringKick, u64(0), a.kick)
					a.cut(1, 0)
					if avail != atkBorder && part != "all" {
						a.ring.Offer(0)
					}
					_ = eventfd.Signal(a.kick)
					a.broke()
					test.Check(t, a.leave())
					return
				}
				a.cut(1, 0)
				a.tell(vhost.SetVringBase, vringState(0, 0))
				a.send(vhost.SetVringKick, vhost.FlagNeedReply, u64(0), a.kick)
				if answer, ok := a.receive(); !ok || answer[0] == 0 {
					// It started without a look at what is gone, and breaks at the first.
					a.broke()
				}
				a.leave()
			})
		}
	}
}

// taken returns when the queue has taken all that is available, or has broken.
func (a *attacker) taken() {
	a.t.Helper()
	w := a.to.dev.worker(0)
	a.until(func() (all bool) {
		w.runScheduledAndWait(func() {
			all = w.broken != nil || w.ring.Base() == a.ring.AvailIdx()
		})
		return all
	})
}

// A region goes while a request is in flight whose status lies in it: the request keeps it until
// its status is written.
func TestMemoryRemovedUnderARequest(t *testing.T) {
	to := newTarget(t, targetDisk, DeviceOptions{})
	a := newAttacker(t, to)
	a.run()
	region, fd := a.mem.Regions()[1], a.mem.FDs()[1]
	// one segment: the whole disk
	binary.LittleEndian.PutUint32(a.mem.Bytes(atkData+8, 4), targetDisk/512)
	late := 0
	for range 300 {
		// Discards are carried out elsewhere, so that the removal has a chance.
		ds := a.request(0, blk.TypeDiscard, 0, virtq.Desc{Addr: atkData, Len: 16})
		ds[2].Addr = atkBorder
		status := a.mem.Bytes(atkBorder, 1)
		status[0] = 0xee
		a.link(0, ds)
		used := a.ring.UsedIdx()
		a.offer(0)
		a.taken()
		a.tell(vhost.RemMemReg, vhost.AppendMemReg(nil, region))
		if a.ring.UsedIdx() == used {
			late++
		}
		if a.outcome(used + 1) {
			t.Fatal(to.log.text())
		}
		if status[0] != 0 {
			t.Fatalf("status %#x", status[0])
		}
		a.tell(vhost.AddMemReg, vhost.AppendMemReg(nil, region), fd)
	}
	t.Logf("%d requests completed after the region had gone", late)
}
