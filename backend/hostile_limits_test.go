package backend

import (
	"runtime"
	"testing"
	"time"

	"cowblk/vhost"
	"cowblk/vhost/blk"
	"cowblk/vhost/virtq"
	"cowblk/vhost/virtq/virtqtest"
)

// A guest keeps as many requests in flight as its rings take, each with the
// longest chain that there is. They wait for the disk; what they cost must not
// depend on how many there are.
func TestLongChainsInFlightAreBounded(t *testing.T) {
	to := newTarget(t, targetDisk, DeviceOptions{})
	a := newAttacker(t, to)
	const num = 1024
	mem, err := virtqtest.NewMemory(virtqtest.Layout(atkBase, 1<<20, 16<<20)...)
	must(t, err)
	must(t, a.mem.Close())
	a.mem = mem
	a.ring, err = virtqtest.NewRing(mem, num, atkBase)
	must(t, err)
	// 1,022 segments of a sector each, then the status, in one indirect table
	// that all requests share.
	const table, data = atkBase + 1<<20, atkBase + 2<<20
	header := mem.Bytes(table+1<<16, 16)
	putHeader(header, blk.TypeOut, 0)
	ds := []virtq.Desc{{Addr: table + 1<<16, Len: 16}}
	for i := range uint64(1022) {
		ds = append(ds, virtq.Desc{Addr: data + 512*i, Len: 512})
	}
	ds = append(ds, virtq.Desc{Addr: table + 1<<16 + 64, Len: 1, Flags: virtq.DescWrite})
	for i := range ds[:len(ds)-1] {
		ds[i].Flags |= virtq.DescNext
		ds[i].Next = uint16(i + 1)
	}
	a.ring.WriteTable(table, ds)
	for i := range uint16(num) {
		a.ring.SetDesc(i, virtq.Desc{Addr: table, Len: uint32(len(ds) * virtq.DescSize), Flags: virtq.DescIndirect})
		a.ring.SetAvail(i, i)
	}
	// Write-through: each waits for a flush round, many at a time.
	a.negotiate()
	a.tell(vhost.SetConfig, vhost.ConfigSpace{Offset: blk.WritebackOffset, Size: 1, Data: []byte{0}}.Append(nil))
	a.setRing()
	a.tell(vhost.SetVringKick, u64(0), a.kick)
	heap := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	a.ring.SetAvailIdx(num)
	signal(a.kick)
	most := uint64(0)
	for end := time.Now().Add(patience); a.ring.UsedIdx() != num; {
		most = max(most, heap())
		a.wait(end)
	}
	after := heap()
	const one = 1024 * 24 // bytes of slices
	if limit := before + 8*maxWide*one; most > limit {
		t.Errorf("heap: %d KiB at most, expected up to %d with %d chains in flight", most>>10, limit>>10, num)
	}
	if after > before+one*8 {
		t.Errorf("heap: %d KiB afterwards, %d before", after>>10, before>>10)
	}
	t.Logf("heap: %d KiB before, %d at most, %d afterwards; unbounded it would be %d", before>>10, most>>10, after>>10, (before+num*one)>>10)
}
