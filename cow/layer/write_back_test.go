package layer

import (
	"errors"
	"maps"
	"os"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"cowblk/cow/cowtest/faultfs"
	"cowblk/cow/vfs"
	"cowblk/internal/test"
)

// The data was evicted since the process died. A write-back error of the file system then counts
// for all disks on it that were killed before, and is reported once.
func TestWriteBackFailedAfterAKill(t *testing.T) {
	dir := sharedDir(t)
	type disk struct {
		p     Paths
		owned map[uint64]bool
	}
	var disks []disk
	for range 3 {
		p := paths(t)
		disks = append(disks, disk{p, killHead(t, p, dir, 200)})
	}
	l := reopenOn(t, kernel{evicted: true}.fs(), disks[0].p, OpenParams{})
	if got := sourceBits(t, l); !maps.Equal(got, disks[0].owned) || dropped(l) != nil {
		t.Errorf("no error: %d blocks, expected %d; lost: %v", len(got), len(disks[0].owned),
			dropped(l))
	}
	test.Must(t, l.Abandon())
	for i, f := range []kernel{{evicted: true, syncFS: syscall.EIO}, {evicted: true}} {
		l := reopenOn(t, f.fs(), disks[i].p, OpenParams{Write: true, SharedDir: dir})
		if n := l.Bitmap().Count(); n != 3 || dropped(l) == nil {
			t.Errorf("disk %d: %d blocks, expected 3; lost: %v", i, n, dropped(l))
		}
		write(t, l, 50, 1) // in a head that was opened after the error
		test.Must(t, l.Abandon())
		l = reopenOn(t, kernel{evicted: true}.fs(), disks[i].p, OpenParams{Write: true})
		if n := l.Bitmap().Count(); n != 4 || dropped(l) != nil {
			t.Errorf("disk %d, once more: %d blocks, expected 4; lost: %v", i, n, dropped(l))
		}
		test.Must(t, l.Abandon())
	}
	// Still in memory: its own sync reports errors.
	l = reopenOn(t, kernel{}.fs(), disks[2].p, OpenParams{Write: true})
	if got := sourceBits(t, l); !maps.Equal(got, disks[2].owned) {
		t.Errorf("%d blocks, expected %d", len(got), len(disks[2].owned))
	}
	flush(t, l) // succeeds: the earlier error does not concern this head
	write(t, l, 120, 1)
	test.Must(t, l.Abandon())
	n := reopenOn(t, kernel{evicted: true}.fs(), disks[2].p, OpenParams{}).Bitmap().Count()
	if n != uint64(len(disks[2].owned))+1 {
		t.Errorf("%d blocks after another death, expected %d", n, len(disks[2].owned)+1)
	}
}

// Some unflushed pages were reclaimed since the process died, and their write-back failed: the next
// sync reports it, or, if it was reported to another process, the hole shows it.
func TestPagesReclaimedAfterAKill(t *testing.T) {
	p, dir := paths(t), sharedDir(t)
	owned := killHead(t, p, dir, 200)
	l, err := Open(kernel{sync: syscall.EIO, reclaimed: 40 * DefaultBlockSize}.fs(), p,
		OpenParams{})
	test.Must(t, err)
	if n := l.Bitmap().Count(); n != 3 || !errors.Is(dropped(l), ErrWriteBack) {
		t.Errorf("%d blocks, expected 3; dropped: %v", n, dropped(l))
	}
	test.Must(t, l.Abandon())
	// nothing was lost
	l = reopenOn(t, kernel{reclaimed: 40 * DefaultBlockSize}.fs(), p, OpenParams{})
	if got := sourceBits(t, l); !maps.Equal(got, owned) {
		t.Errorf("%d blocks, expected %d", len(got), len(owned))
	}
	test.Must(t, l.Abandon())
	f, err := os.OpenFile(p.Data, os.O_RDWR, 0)
	test.Must(t, err)
	test.Must(t, unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE,
		8*DefaultBlockSize, 8*DefaultBlockSize))
	test.Must(t, f.Close())
	test.ErrorIs(t, test.Err(Open(kernel{reclaimed: 40 * DefaultBlockSize}.fs(), p, OpenParams{})),
		ErrUnflushed, "error")
}

// A hole under an unflushed bit, evicted since: its former content is unknown.
func TestHoleAfterAKill(t *testing.T) {
	p, dir := paths(t), sharedDir(t)
	owned := killHead(t, p, dir, 200)
	f, err := os.OpenFile(p.Data, os.O_RDWR, 0)
	test.Must(t, err)
	test.Must(t, unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE,
		40*DefaultBlockSize, 8*DefaultBlockSize))
	test.Must(t, f.Close())
	if _, err := Open(kernel{evicted: true}.fs(), p, OpenParams{}); !errors.Is(err, ErrUnflushed) ||
		!strings.Contains(err.Error(), "--keep-unflushed") {
		t.Errorf("%v, expected ErrUnflushed with advice", err)
	}
	for _, l := range []*Layer{reopenOn(t, kernel{}.fs(), p, OpenParams{}),
		reopenOn(t, kernel{evicted: true}.fs(), p, OpenParams{Unflushed: KeepUnflushed})} {
		if got := sourceBits(t, l); !maps.Equal(got, owned) {
			t.Errorf("%d blocks, expected %d", len(got), len(owned))
		}
	}
}

// The guest has discarded blocks since the last flush: a hole is no sign of a loss. After a flush
// it is.
func TestDiscardedHoleAfterAKill(t *testing.T) {
	for _, flushed := range []bool{false, true} {
		p, dir := paths(t), sharedDir(t)
		test.Must(t, newHead(t, p, CreateParams{Size: 100 * DefaultBlockSize}).Close())
		l := openHead(t, p, dir)
		write(t, l, 1, 3)
		l.Bitmap().MarkPunched()
		test.Must(t, l.Data().PunchHole(DefaultBlockSize, 2*DefaultBlockSize))
		if flushed {
			flush(t, l)
			write(t, l, 7, 1)
			// the device loses it
			test.Must(t, l.Data().PunchHole(7*DefaultBlockSize, DefaultBlockSize))
		}
		test.Must(t, l.Abandon())
		l, err := Open(kernel{evicted: true}.fs(), p, OpenParams{Write: true})
		if refused := errors.Is(err, ErrUnflushed); refused != flushed || !refused && err != nil {
			t.Errorf("flushed %v: %v", flushed, err)
		}
		if err == nil {
			if n, _ := l.Unflushed(); n != 3 {
				t.Errorf("%d blocks were taken up, expected 3", n)
			}
			test.Must(t, l.Abandon())
		}
	}
}

func reopenOn(t *testing.T, f vfs.FS, p Paths, o OpenParams) *Layer {
	t.Helper()
	l, err := Open(f, p, o)
	test.Must(t, err)
	t.Cleanup(func() { _ = l.Abandon() })
	return l
}

// Pages that a failed sync has lost are dropped from the page cache before they are read; not after
// a kill or a close.
func TestCacheIsDropped(t *testing.T) {
	failed := func(l *Layer) error { l.shared.invalidate(); return l.Abandon() }
	for name, c := range map[string]struct {
		end   func(l *Layer) error
		write bool
		drops int
	}{
		"failed":           {failed, true, 1},
		"failed, for read": {failed, false, 1},
		"died":             {(*Layer).Abandon, true, 0},
		"died, for read":   {(*Layer).Abandon, false, 0},
		"closed":           {(*Layer).Close, true, 0},
	} {
		t.Run(name, func(t *testing.T) {
			p, dir := paths(t), sharedDir(t)
			test.Must(t, newHead(t, p, CreateParams{Size: 100 * DefaultBlockSize}).Close())
			l := openHead(t, p, dir)
			write(t, l, 1, 1)
			test.Must(t, c.end(l))
			drops := 0
			x := faultfs.OverShared(vfs.OS{}, nil)
			x.OnCall(func(c faultfs.Call) error {
				if c.Op == "drop cache" {
					drops++
				}
				return nil
			})
			l, err := Open(x, p, OpenParams{Write: c.write})
			test.Must(t, err)
			if drops != c.drops {
				t.Errorf("the cache was dropped %d times, expected %d", drops, c.drops)
			}
			test.Must(t, l.Abandon())
		})
	}
}

// dropped returns the reason why unflushed bits were not recovered.
func dropped(l *Layer) error {
	_, err := l.Unflushed()
	return err
}
