package cow_test

import (
	"errors"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"cowblk/cow"
	"cowblk/cow/cowtest"
	"cowblk/cow/cowtest/faultfs"
	"cowblk/cow/layer"
	"cowblk/cow/vfs"
	"cowblk/internal/test"
)

// background is a disk in a bubble of testing/synctest, where hours pass at once.
type background struct {
	*cowtest.Rig
	x      *faultfs.FS
	log    test.Log
	events atomic.Int32
}

// inBubble runs f on a disk with background flushes, in a bubble.
func inBubble(t *testing.T, interval time.Duration, f func(*testing.T, *background)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		b := &background{x: faultfs.Over(vfs.OS{}, nil)}
		var err error
		b.Rig, err = cowtest.NewRig(t.TempDir(), b.x, cowtest.Shape{Size: 1 << 20, BlockSize: 4096,
			BaseSize: 1 << 20})
		if err == nil {
			err = b.Close()
		}
		test.Must(t, err)
		b.open(t, interval)
		f(t, b)
		b.x.OnCall(nil)
		if err := b.Close(); err != nil && !errors.Is(err, cow.ErrFailed) {
			t.Error(err)
		}
	})
}

func (b *background) open(t *testing.T, interval time.Duration) {
	t.Helper()
	var err error
	b.Disk, err = cow.Open(b.Spec, cow.Options{
		LoseUnflushed: true,
		FS:            b.x, FlushInterval: interval, Log: b.log.Logger(),
		OnFailure: func(error) { b.events.Add(1) },
	})
	test.Must(t, err)
}

// rounds lets time pass and returns the number of flush rounds in it.
func (b *background) rounds(d time.Duration) uint64 {
	before := b.Disk.Stats().FlushRounds
	time.Sleep(d)
	synctest.Wait()
	return b.Disk.Stats().FlushRounds - before
}

// Writes, discards and write-zeroes become durable, data and bit, after the interval and not
// before, without a flush of the guest. One round covers all; afterwards the disk is idle.
func TestBackgroundFlush(t *testing.T) {
	for _, op := range []cow.Op{cow.OpWrite, cow.OpDiscard, cow.OpWriteZeroes} {
		for _, async := range []bool{false, true} {
			inBubble(t, 0, func(t *testing.T, b *background) {
				open := b.Disk.NewChannel
				if async {
					open = b.Disk.NewAsyncChannel
				}
				ch, err := open()
				test.Must(t, err)
				for i := range int64(3) {
					r := &cow.Request{Op: op, Offset: i * 4096, Length: 4096,
						Data:   [][]byte{fill('w', 4096)},
						Ranges: []cow.Range{{Offset: i * 4096, Length: 4096}}}
					ch.Submit(r)
					test.Must(t, errors.Join(waitCompletions(ch, 1), r.Err))
				}
				if n := b.rounds(cow.DefaultFlushInterval - time.Second); n != 0 ||
					bit(t, b.Rig, 0, 0) {
					t.Errorf("%v: %d rounds before the interval is over", op, n)
				}
				if n := b.rounds(time.Second); n != 1 || !bit(t, b.Rig, 0, 0) ||
					!bit(t, b.Rig, 0, 2) {
					t.Errorf("%v: expected one round and the bits set, found %d rounds", op, n)
				}
				if n := b.rounds(24 * time.Hour); n != 0 {
					t.Errorf("%v: %d rounds while nobody wrote", op, n)
				}
				test.Check(t, ch.Close())
			})
		}
	}
}

// There is no round without unflushed writes: after the open, after reads, and after a flush of the
// guest, which stops the timer that the write before it had started.
func TestBackgroundFlushOfACleanDisk(t *testing.T) {
	inBubble(t, time.Second, func(t *testing.T, b *background) {
		test.Equal(t, b.rounds(time.Hour), 0, "rounds after the opening")
		test.Must(t, test.Err(b.Disk.ReadAt(make([]byte, 4096), 0)))
		test.Equal(t, b.rounds(time.Hour), 0, "rounds after a read")
		for range 3 {
			write(t, b.Disk, 'a', 0, 4096)
			test.Must(t, b.Disk.Flush())
		}
		test.Must(t, do(b.Disk, &cow.Request{Op: cow.OpWrite, FUA: true, Length: 4096,
			Data: [][]byte{fill('b', 4096)}}))
		test.Equal(t, b.rounds(time.Hour), 0, "rounds after the guest's own flush")
	})
}

// The next round covers a write during a round, also if its channel was closed since.
func TestBackgroundFlushAfterARoundUnderWay(t *testing.T) {
	inBubble(t, time.Minute, func(t *testing.T, b *background) {
		write(t, b.Disk, 'a', 0, 4096)
		var during sync.Once
		b.x.OnCall(func(c faultfs.Call) error {
			if c.Op == "sync" && strings.HasSuffix(c.Name, "0000.data") {
				during.Do(func() { // bits are copied already, data is not synced yet
					err := do(b.Disk, &cow.Request{Op: cow.OpWrite, Offset: 8192, Length: 4096,
						Data: [][]byte{fill('b', 4096)}})
					test.Check(t, err)
				})
			}
			return nil
		})
		test.Must(t, b.Disk.Flush())
		if !bit(t, b.Rig, 0, 0) || bit(t, b.Rig, 0, 2) {
			t.Fatal("expected the first write's bit durable, and not the one's during the round")
		}
		if n := b.rounds(time.Minute); n != 1 || !bit(t, b.Rig, 0, 2) {
			t.Errorf("expected one round for the write during the last, found %d; its bit: %v", n,
				bit(t, b.Rig, 0, 2))
		}
	})
}

// The round is repeated until it succeeds, whatever the error of the map's write, and logged once.
func TestBackgroundFlushWithoutSpace(t *testing.T) {
	inBubble(t, time.Minute, func(t *testing.T, b *background) {
		full := func(c faultfs.Call) error {
			if c.Op == "write" && strings.HasSuffix(c.Name, ".map") {
				return syscall.ENOSPC
			}
			return nil
		}
		for failure := 1; failure <= 2; failure++ {
			block := int64(failure)
			b.x.OnCall(full)
			write(t, b.Disk, 'a', block*4096, 4096)
			if n := b.rounds(10 * time.Minute); n != 10 || b.Disk.Stats().Failed != nil {
				t.Errorf("%d rounds in 10 minutes, disk: %v", n, b.Disk.Stats().Failed)
			}
			if n := b.log.Count(slog.LevelWarn); n != failure {
				t.Errorf("expected %d lines about %d failures, found %d:\n%s", failure, failure, n,
					&b.log)
			}
			b.x.OnCall(nil)
			if n := b.rounds(time.Minute); n != 1 || !bit(t, b.Rig, 0, block) {
				t.Errorf("with space again: %d rounds, bit %v", n, bit(t, b.Rig, 0, block))
			}
			test.Equal(t, b.rounds(time.Hour), 0, "rounds afterwards")
		}
		// A failed flush of the guest leaves dirty bits too.
		b.x.OnCall(full)
		write(t, b.Disk, 'a', 3*4096, 4096)
		if err := b.Disk.Flush(); !errors.Is(err, syscall.ENOSPC) {
			t.Fatalf("flush: %v", err)
		}
		b.x.OnCall(nil)
		if n := b.rounds(time.Minute); n != 1 || !bit(t, b.Rig, 0, 3) {
			t.Errorf("after a failed flush: %d rounds, bit %v", n, bit(t, b.Rig, 0, 3))
		}
	})
}

// A failed background sync is final, and no further round runs.
func TestBackgroundFlushFailure(t *testing.T) {
	inBubble(t, time.Minute, func(t *testing.T, b *background) {
		write(t, b.Disk, 'a', 0, 4096)
		b.x.OnCall(func(c faultfs.Call) error {
			if c.Op == "sync" {
				return syscall.EIO
			}
			return nil
		})
		if n := b.rounds(time.Minute); n != 1 || b.events.Load() != 1 ||
			!errors.Is(b.Disk.Stats().Failed, syscall.EIO) {
			t.Errorf("%d rounds, %d events, disk: %v", n, b.events.Load(), b.Disk.Stats().Failed)
		}
		b.x.OnCall(nil)
		test.ErrorIs(t, test.Err(b.Disk.WriteAt(fill('b', 512), 0)), cow.ErrFailed)
		test.ErrorIs(t, b.Disk.Flush(), cow.ErrFailed)
		if n := b.rounds(time.Hour); n != 0 || b.events.Load() != 1 {
			t.Errorf("%d rounds and %d events after the failure", n, b.events.Load())
		}
	})
}

// Unflushed writes of a process that was killed or has detached are flushed too.
func TestBackgroundFlushOfAnUncleanHead(t *testing.T) {
	inBubble(t, time.Minute, func(t *testing.T, b *background) {
		write(t, b.Disk, 'a', 0, 4096)
		test.Must(t, test.Err(b.Disk.Detach()))
		b.open(t, time.Minute)
		if n := b.rounds(time.Minute); n != 1 || !bit(t, b.Rig, 0, 0) {
			t.Errorf("not closed in order: %d rounds, bit %v, expected 1", n, bit(t, b.Rig, 0, 0))
		}
		test.Equal(t, b.rounds(time.Hour), 0, "rounds afterwards")
	})
}

// A disk that is closed or detached while its timer runs has no timer afterwards: the bubble would
// wait for it, and it would use a closed notifier.
func TestBackgroundFlushEndsWithTheDisk(t *testing.T) {
	inBubble(t, time.Second, func(t *testing.T, b *background) {
		for range 10 {
			write(t, b.Disk, 'a', 0, 4096)
			time.Sleep(time.Second) // the timer expires while the disk is closed
			test.Must(t, b.Close())
			time.Sleep(time.Hour)
			b.open(t, time.Second)
		}
	})
}

// A negative interval disables background flushes.
func TestNoBackgroundFlush(t *testing.T) {
	inBubble(t, -1, func(t *testing.T, b *background) {
		write(t, b.Disk, 'a', 0, 4096)
		test.Equal(t, b.rounds(24*time.Hour), 0, "rounds")
	})
	for _, d := range []time.Duration{1, cow.MinFlushInterval - 1, cow.MaxFlushInterval + 1} {
		_, err := cow.Open(cow.Spec{}, cow.Options{FlushInterval: d})
		test.Texts(t, "interval.texts")(t, d.String(), err)
	}
}

// A former head that could not be sealed, at any change of its map, is sealed a little later: disks
// on it can be opened while this one is still served.
func TestSealIsRetried(t *testing.T) {
	for n := int32(1); ; n++ {
		failed := false
		inBubble(t, time.Hour, func(t *testing.T, b *background) {
			write(t, b.Disk, 'a', 0, 4096)
			var changes atomic.Int32
			b.x.OnCall(func(c faultfs.Call) error {
				if c.Op == "write" && strings.HasSuffix(c.Name, "0000.map") && changes.Add(1) == n {
					return syscall.ENOSPC
				}
				return nil
			})
			p := promote(t, b.Rig)
			<-p.Done()
			if failed = changes.Load() >= n; !failed {
				test.Check(t, p.Err())
				return
			}
			if !errors.Is(p.Err(), syscall.ENOSPC) {
				t.Errorf("change %d of the map failed, the promotion ended with %v", n, p.Err())
			}
			test.Check(t, p.Sealed(t.Context()), "change", n, "of the map failed once")
			l, err := layer.Open(vfs.OS{}, b.Spec.Layers[0],
				layer.OpenParams{Expect: layer.Expect{State: layer.Sealed}})
			test.Must(t, err, "change", n, "of the map failed once")
			test.Check(t, l.Close())
			want(t, b.Disk, 'a', 0, 4096)
		})
		if !failed {
			if n < 3 {
				t.Errorf("%d changes of a map when it is sealed", n-1)
			}
			return
		}
	}
}
