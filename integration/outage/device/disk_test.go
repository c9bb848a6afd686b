package device

import (
	"bytes"
	"errors"
	"sync/atomic"
	"syscall"
	"testing"

	"cowblk/internal/test"
)

func newDisk(t *testing.T) *Disk {
	t.Helper()
	d, err := NewDisk(1 << 20)
	test.Must(t, err)
	t.Cleanup(func() { d.Close() })
	return d
}

func (d *Disk) mustWrite(t *testing.T, off int64, fill byte, n int) {
	t.Helper()
	test.Must(t, test.Err(d.WriteAt(bytes.Repeat([]byte{fill}, n), off)))
}

func (d *Disk) mustRead(t *testing.T, off int64, n int) []byte {
	t.Helper()
	p := make([]byte, n)
	test.Must(t, test.Err(d.ReadAt(p, off)))
	return p
}

func (d *Disk) want(t *testing.T, off int64, fill byte, n int) {
	t.Helper()
	if p := d.mustRead(t, off, n); !bytes.Equal(p, bytes.Repeat([]byte{fill}, n)) {
		t.Errorf("at %d: found %d, expected %d bytes of %d", off, p[0], n, fill)
	}
}

// Synced content survives every cut. Each other sector survives as a whole or is lost as a whole.
func TestCutLosesVolatileSectors(t *testing.T) {
	for _, keep := range []float64{0, 0.5, 1} {
		d := newDisk(t)
		d.mustWrite(t, 0, 1, 64<<10)
		test.Must(t, d.Sync())
		d.mustWrite(t, 512, 2, 63<<10)
		d.want(t, 512, 2, 63<<10)
		if n := d.Counters().Volatile; n != 126 {
			t.Errorf("%d volatile sectors, expected 126", n)
		}
		d.Cut(keep)
		test.ErrorIs(t, test.Err(d.ReadAt(make([]byte, 512), 0)), syscall.EIO, "without power")
		test.ErrorIs(t, test.Err(d.WriteAt(make([]byte, 512), 0)), syscall.EIO, "without power")
		test.ErrorIs(t, d.Sync(), syscall.EIO, "without power")
		d.PowerOn()
		d.want(t, 0, 1, 512)
		kept := 0
		for off := int64(512); off < 64<<10; off += 512 {
			switch p := d.mustRead(t, off, 512); {
			case bytes.Equal(p, bytes.Repeat([]byte{2}, 512)):
				kept++
			case !bytes.Equal(p, bytes.Repeat([]byte{1}, 512)):
				t.Errorf("the sector at %d is neither old nor new", off)
			}
		}
		if keep == 0 && kept != 0 || keep == 1 && kept != 126 || keep == 0.5 &&
			(kept == 0 || kept == 126) {
			t.Errorf("keep %v: %d of 126 sectors survived", keep, kept)
		}
	}
}

// An older version of a sector survives if the cache wrote it back before it was overwritten.
func TestDrainKeepsOlderVersion(t *testing.T) {
	d := newDisk(t)
	d.mustWrite(t, 0, 1, 512)
	d.Drain(1)
	d.mustWrite(t, 0, 2, 512)
	d.Cut(0)
	d.PowerOn()
	d.want(t, 0, 1, 512)
}

func TestCutAfterCountsWritesAndSyncs(t *testing.T) {
	d := newDisk(t)
	d.CutAfter(3, 1)
	d.mustWrite(t, 0, 1, 512)
	test.Must(t, d.Sync())
	test.ErrorIs(t, test.Err(d.WriteAt(bytes.Repeat([]byte{2}, 512), 512)), syscall.EIO,
		"the third request")
	d.PowerOn()
	d.want(t, 0, 1, 512)
	d.want(t, 512, 2, 512) // keep 1: it was in the cache
	d.CutAfter(1, 0)
	test.ErrorIs(t, d.Sync(), syscall.EIO, "the sync")
}

func TestFaultsByRange(t *testing.T) {
	d := newDisk(t)
	d.mustWrite(t, 8192, 1, 4096)
	d.Fail(Faults{Reads: []Range{{8192, 512}}, Writes: []Range{{0, 4096}}, Syncs: true})
	test.ErrorIs(t, test.Err(d.ReadAt(make([]byte, 4096), 8192-3584)), syscall.EIO, "read")
	d.want(t, 8192+512, 1, 512)
	test.ErrorIs(t, test.Err(d.WriteAt(make([]byte, 512), 3584)), syscall.EIO, "write")
	d.mustWrite(t, 4096, 2, 512)
	test.ErrorIs(t, d.Sync(), syscall.EIO, "sync")
	d.Fail(Faults{})
	d.want(t, 8192, 1, 4096)
	if c := d.Counters(); c.Failed != 3 {
		t.Errorf("%d failed requests, expected 3", c.Failed)
	}
	test.ErrorIs(t, test.Err(d.WriteAt(make([]byte, 512), 1<<20)), errOutside, "outside")
}

// A request that waits for the end of a freeze meets the faults set at that time.
func TestFreeze(t *testing.T) {
	d := newDisk(t)
	d.Freeze()
	var thawed atomic.Bool
	done := make(chan error, 1)
	go func() {
		_, err := d.WriteAt(make([]byte, 512), 0)
		if !thawed.Load() {
			err = errors.New("the write did not wait")
		}
		done <- err
	}()
	d.Fail(Faults{Writes: []Range{{0, 512}}})
	thawed.Store(true)
	d.Thaw()
	test.ErrorIs(t, <-done, syscall.EIO, "after the thaw")
}
