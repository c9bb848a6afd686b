package cow_test

import (
	"log/slog"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"cowblk/cow"
	"cowblk/cow/cowtest"
	"cowblk/cow/cowtest/faultfs"
	"cowblk/internal/test"
)

// Every sync of sealing a former head (its data, twice, its map, its header) fails once: from then
// on no flush or write succeeds, one event is logged, and the disk opens again as it was last
// flushed.
func TestFailedSyncOfSealingIsSticky(t *testing.T) {
	failed := 0
	for n := int32(1); ; n++ {
		rig, x := newRig(t, cowtest.Shape{Size: 1 << 20, BlockSize: 4096})
		test.Must(t, rig.Close())
		var events atomic.Int32
		var log test.Log
		d, err := cow.Open(rig.Spec, cow.Options{FS: x, LoseUnflushed: true, Log: log.Logger(),
			OnFailure: func(error) { events.Add(1) }})
		test.Must(t, err)
		rig.Disk = d
		write(t, d, 'a', 0, 4096)
		test.Must(t, d.Flush())
		write(t, d, 'b', 4096, 4096)
		var syncs atomic.Int32
		x.OnCall(func(c faultfs.Call) error {
			if c.Op == "sync" && strings.Contains(c.Name, "0000.") && syncs.Add(1) == n {
				return syscall.EIO
			}
			return nil
		})
		p := promote(t, rig)
		<-p.Done()
		x.OnCall(nil)
		if syncs.Load() < n { // all have succeeded
			if p.Err() != nil || failed < 4 {
				t.Errorf("%d syncs failed, then sealing ended with %v", failed, p.Err())
			}
			return
		}
		failed++
		if p.Err() == nil {
			t.Errorf("sync %d failed and the promotion did not", n)
		}
		test.ErrorIs(t, d.Flush(), cow.ErrFailed, n)
		test.ErrorIs(t, test.Err(d.WriteAt(fill('c', 512), 0)), cow.ErrFailed, n)
		want(t, d, 'b', 4096, 4096) // reads go on
		if events.Load() != 1 || log.Count(slog.LevelError) != 1 {
			t.Errorf("sync %d failed: %d events, expected one event and one error logged\n%s", n,
				events.Load(), &log)
		}
		test.ErrorIs(t, d.Close(), cow.ErrFailed, n)
		rig.Disk = nil
		test.Must(t, rig.Open())
		want(t, rig.Disk, 'a', 0, 4096)
	}
}

// No sync that fails for want of space while a disk is closed is repeated as if nothing were lost,
// and the error keeps the cause.
func TestCloseNamesTheFailedSync(t *testing.T) {
	for n := int32(1); ; n++ {
		rig, x := newRig(t, cowtest.Shape{Size: 1 << 20, BlockSize: 4096})
		test.Must(t, rig.Close())
		d, err := cow.Open(rig.Spec, cow.Options{FS: x, LoseUnflushed: true,
			OnNoSpace: func(error, bool) bool { return true }})
		test.Must(t, err)
		write(t, d, 'a', 0, 4096)
		var syncs atomic.Int32
		x.OnCall(func(c faultfs.Call) error {
			if c.Op == "sync" && syncs.Add(1) == n {
				return syscall.ENOSPC
			}
			return nil
		})
		err = d.Close()
		if syncs.Load() < n { // all have succeeded
			if test.Must(t, err); n < 4 {
				t.Errorf("closing makes %d syncs", n-1)
			}
			return
		}
		test.ErrorIs(t, err, syscall.ENOSPC, n)
		if cow.NoSpace(err) {
			t.Errorf("sync %d: %v: reported as if nothing were lost", n, err)
		}
	}
}
