package cow_test

import (
	"errors"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"cowblk/cow"
	"cowblk/cow/cowtest"
	"cowblk/cow/cowtest/faultfs"
	"cowblk/internal/test"
)

// A round does not serve a flush that arrives during it; flushes that wait together share a round.
func TestFlushDuringARoundWaitsForTheNext(t *testing.T) {
	rig, x := newRig(t, cowtest.Shape{Size: 1 << 20, BlockSize: 4096})
	write(t, rig.Disk, 'a', 0, 4096)
	hold := setTrap(t, x, "sync", "0000.data")
	before := rig.Disk.Stats().FlushRounds
	first := test.Go(rig.Disk.Flush)
	<-hold.caught
	write(t, rig.Disk, 'b', 4096, 4096) // too late for the round under way
	var second []*test.Task
	for range 5 {
		second = append(second, test.Go(rig.Disk.Flush))
	}
	test.Eventually(t, "the flushes are queued",
		func() bool { return rig.Disk.QueuedFlushes() == len(second) })
	hold.open()
	first.Must(t)
	for _, k := range second {
		k.Must(t)
	}
	if rounds := rig.Disk.Stats().FlushRounds - before; rounds != 2 {
		t.Errorf("rounds for one flush and five during it: expected 2, found %d", rounds)
	}
	if !bit(t, rig, 0, 1) {
		t.Error("the write before the late flushes is not durable")
	}
}

// Reads and writes of a channel go on while its flush runs.
func TestFlushDoesNotBlockItsChannel(t *testing.T) {
	rig, x := newRig(t, cowtest.Shape{Size: 1 << 20, BlockSize: 4096})
	hold := setTrap(t, x, "sync", "0000.data")
	ch, err := rig.Disk.NewChannel()
	test.Must(t, err)
	flush := &cow.Request{Op: cow.OpFlush}
	ch.Submit(flush)
	<-hold.caught
	buf := fill('w', 4096)
	for _, op := range []cow.Op{cow.OpWrite, cow.OpRead} {
		r := &cow.Request{Op: op, Length: 4096, Data: [][]byte{buf}}
		ch.Submit(r)
		if out := ch.Completed(nil); len(out) != 1 || out[0] != r || r.Err != nil {
			t.Fatalf("%v while a flush runs: %v, %v", op, out, r.Err)
		}
	}
	test.ErrorIs(t, ch.Close(), cow.ErrInFlight, "close of a channel with a flush under way")
	test.ErrorIs(t, rig.Disk.Close(), cow.ErrInFlight, "close of a disk with an open channel")
	hold.open()
	test.Must(t, errors.Join(waitCompletions(ch, 1), flush.Err, ch.Close()))
}

// A write-through completes when data and bit are durable.
func TestFUAIsDurableWhenComplete(t *testing.T) {
	for _, op := range []cow.Op{cow.OpWrite, cow.OpDiscard, cow.OpWriteZeroes} {
		rig, x := newRig(t, cowtest.Shape{Size: 1 << 20, BlockSize: 4096, BaseSize: 1 << 20})
		var syncs atomic.Int32
		x.OnCall(func(c faultfs.Call) error {
			if c.Op == "sync" {
				syncs.Add(1)
			}
			return nil
		})
		r := &cow.Request{Op: op, FUA: true, Offset: 4096, Length: 4096,
			Data: [][]byte{fill('w', 4096)}, Ranges: []cow.Range{{Offset: 4096, Length: 4096}}}
		test.Must(t, do(rig.Disk, r))
		if n := syncs.Load(); n != 2 || !bit(t, rig, 0, 1) {
			t.Errorf("%v: expected data and map synced and the bit set, found %d syncs, bit %v", op,
				n, bit(t, rig, 0, 1))
		}
	}
}

// A flush covers former heads until they are sealed.
func TestFlushCoversUnsealedHead(t *testing.T) {
	rig, x := newRig(t, cowtest.Shape{Size: 1 << 20, BlockSize: 4096})
	write(t, rig.Disk, 'a', 4096, 4096)
	// A blocked write to the former head keeps the seal waiting, so that the flush has to do the
	// work.
	caught, release := make(chan struct{}), make(chan struct{})
	x.OnCall(func(c faultfs.Call) error {
		if c.Op == "write" && strings.HasSuffix(c.Name, "0000.data") {
			close(caught)
			<-release
		}
		return nil
	})
	written := make(chan error)
	go func() {
		_, err := rig.Disk.WriteAt(fill('b', 4096), 8192)
		written <- err
	}()
	<-caught
	p := promote(t, rig)
	if bit(t, rig, 0, 1) {
		t.Fatal("the bit is durable already")
	}
	test.Must(t, rig.Disk.Flush())
	if !bit(t, rig, 0, 1) {
		t.Error("a flush after the promotion did not cover the former head")
	}
	close(release)
	test.Must(t, <-written)
	sealed(t, p)
}

// A failed sync, of data or map, makes the disk read-only: no later flush succeeds, though later
// syncs would.
func TestFailedSyncIsSticky(t *testing.T) {
	for _, file := range []string{"0000.data", "0000.map"} {
		t.Run(file, func(t *testing.T) {
			rig, x := newRig(t, cowtest.Shape{Size: 1 << 20, BlockSize: 4096})
			test.Must(t, rig.Close())
			var events atomic.Int32
			d, err := cow.Open(rig.Spec, cow.Options{FS: x, LoseUnflushed: true,
				OnFailure: func(error) { events.Add(1) }})
			test.Must(t, err)
			rig.Disk = d
			write(t, d, 'a', 0, 4096)
			x.OnCall(func(c faultfs.Call) error {
				if c.Op == "sync" && strings.HasSuffix(c.Name, file) {
					return syscall.EIO
				}
				return nil
			})
			if err := d.Flush(); !errors.Is(err, cow.ErrFailed) || !errors.Is(err, syscall.EIO) {
				t.Fatalf("flush: expected ErrFailed and EIO, found %v", err)
			}
			x.OnCall(nil)
			test.ErrorIs(t, d.Flush(), cow.ErrFailed)
			for _, op := range []cow.Op{cow.OpWrite, cow.OpDiscard, cow.OpWriteZeroes} {
				r := &cow.Request{Op: op, Length: 512, Data: [][]byte{fill('b', 512)}}
				test.ErrorIs(t, do(d, r), cow.ErrFailed, op)
			}
			test.ErrorIs(t, test.Err(rig.Promote()), cow.ErrFailed)
			want(t, d, 'a', 0, 4096)
			if d.Stats().Failed == nil || events.Load() != 1 {
				t.Errorf("Stats().Failed is %v, %d events", d.Stats().Failed, events.Load())
			}
			test.ErrorIs(t, d.Close(), cow.ErrFailed)
			rig.Disk = nil
		})
	}
}

// If a map page cannot be written (no space) its flush fails, and the next flush writes it.
func TestFailedMapWriteIsRepeated(t *testing.T) {
	rig, x := newRig(t, cowtest.Shape{Size: 1 << 20, BlockSize: 4096})
	write(t, rig.Disk, 'a', 0, 4096)
	x.OnCall(func(c faultfs.Call) error {
		if c.Op == "write" && strings.HasSuffix(c.Name, ".map") {
			return syscall.ENOSPC
		}
		return nil
	})
	if err := rig.Disk.Flush(); !errors.Is(err, syscall.ENOSPC) || errors.Is(err, cow.ErrFailed) {
		t.Fatalf("flush: expected ENOSPC alone, found %v", err)
	}
	x.OnCall(nil)
	test.Must(t, rig.Disk.Flush())
	if !bit(t, rig, 0, 0) {
		t.Error("the second flush did not write the map")
	}
}

// A failed write takes no block: the old content stays.
func TestFailedFirstWriteOwnsNothing(t *testing.T) {
	rig, x := newRig(t, cowtest.Shape{Size: 1 << 20, BlockSize: 4096, BaseSize: 1 << 20})
	x.OnCall(func(c faultfs.Call) error {
		if c.Op == "write" || c.Op == "punch" {
			return syscall.ENOSPC
		}
		return nil
	})
	if _, err := rig.Disk.WriteAt(fill('w', 8192), 512); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("write: expected ENOSPC, found %v", err)
	}
	if err := do(rig.Disk, &cow.Request{Op: cow.OpDiscard,
		Ranges: []cow.Range{{Offset: 0, Length: 8192}}}); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("discard: expected ENOSPC, found %v", err)
	}
	x.OnCall(nil)
	if n := rig.Disk.Stats().HeadBlocks; n != 0 {
		t.Errorf("the head owns %d blocks after failed writes", n)
	}
	m := cowtest.NewModel(1<<20, 1<<20)
	p, err := cowtest.ReadAll(rig.Disk)
	if err == nil {
		err = m.CheckIdle(p, 0)
	}
	test.Check(t, err)
	write(t, rig.Disk, 'w', 512, 512) // the guard is free
}
