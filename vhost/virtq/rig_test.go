package virtq_test

import (
	"testing"

	"golang.org/x/sys/unix"

	"cowblk/internal/test"
	"cowblk/vhost/guest"
	"cowblk/vhost/virtq"
	"cowblk/vhost/virtq/virtqtest"
)

// Guest addresses of the rig: two adjacent regions, rings at the start of the first, buffers at
// Data, indirect tables at Table; the border of the regions is at Border, and End is the end of
// memory.
const (
	ringAddr  = 0x10000
	regionLen = 32 << 20 // sparse
	border    = ringAddr + regionLen
	end       = border + regionLen
	dataAddr  = border - 0x8000
	tableAddr = border + 0x8000
)

// rig is a ring with both of its sides.
type rig struct {
	mem   *virtqtest.Memory
	table *guest.Table
	drv   *virtqtest.Driver
	q     *virtq.Split
	cfg   virtq.SplitConfig
}

func newRig(t testing.TB, cfg virtq.SplitConfig) *rig {
	t.Helper()
	r := &rig{}
	var err error
	if r.mem, err = virtqtest.NewMemory(virtqtest.Layout(ringAddr, regionLen,
		regionLen)...); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		test.Check(t, r.mem.Close())
	})
	if r.table, err = r.mem.Table(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.table.Release)
	ring, err := virtqtest.NewRing(r.mem, cfg.Num, ringAddr)
	test.Must(t, err)
	r.drv = virtqtest.NewDriver(ring)
	r.drv.EventIdx = cfg.EventIdx
	r.drv.Reset(cfg.Base)
	r.cfg = cfg
	r.restart(t)
	return r
}

// region returns memory for one queue's region of an in-flight buffer; nil for num 0.
func region(t testing.TB, num uint16) []byte {
	t.Helper()
	if num == 0 {
		return nil
	}
	b, err := unix.Mmap(-1, 0, virtq.InflightSize(num), unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_ANON|unix.MAP_PRIVATE)
	test.Must(t, err)
	t.Cleanup(func() {
		test.Check(t, unix.Munmap(b))
	})
	return b
}

// restart makes a new device side for the present ring.
func (r *rig) restart(t testing.TB) {
	t.Helper()
	var err error
	r.cfg.Desc, r.cfg.Avail, r.cfg.Used, err = virtq.MapSplit(r.table, r.cfg.Num,
		r.mem.User(r.drv.Desc), r.mem.User(r.drv.Avail), r.mem.User(r.drv.Used))
	test.Must(t, err)
	if r.q, err = virtq.NewSplit(r.cfg); err != nil {
		t.Fatal(err)
	}
}

// readable and writable return descriptors of n bytes at gpa.
func readable(gpa uint64, n uint32) virtq.Desc { return virtq.Desc{Addr: gpa, Len: n} }
func writable(gpa uint64, n uint32) virtq.Desc {
	return virtq.Desc{Addr: gpa, Len: n, Flags: virtq.DescWrite}
}

// add makes a chain available and fails the test if there is no room.
func (r *rig) add(t testing.TB, ds ...virtq.Desc) (head uint16) {
	t.Helper()
	head, err := r.drv.Add(ds...)
	test.Must(t, err)
	r.drv.Expose()
	return head
}

// take expects one chain from the device's side and loads it.
func (r *rig) take(t testing.TB, c *virtq.Chain) {
	t.Helper()
	head, ok, err := r.q.Next()
	if err != nil || !ok {
		t.Fatalf("Next: %v, error %v, expected a chain", ok, err)
	}
	c.Head = head
	test.Must(t, r.q.Load(r.table, c))
}
