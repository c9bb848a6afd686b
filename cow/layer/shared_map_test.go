package layer

import (
	"errors"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"cowblk/cow/cowtest/faultfs"
	"cowblk/cow/vfs"
	"cowblk/internal/test"
)

// The memory depends on what is not flushed, not on what was written, nor on the size.
func TestSharedMapGivesMemoryBack(t *testing.T) {
	dir, files := sharedDir(t), sharedDir(t) // ext4 has no files of this size
	p := Paths{Map: filepath.Join(files, "map"), Data: filepath.Join(files, "data")}
	const size = 64 << 40
	test.Must(t, newHead(t, p, CreateParams{Size: size}).Close())
	l := openHead(t, p, dir)
	blocks := func() int64 {
		var st unix.Stat_t
		test.Must(t, unix.Stat(sharedFiles(t, dir)[0], &st))
		return st.Blocks * 512
	}
	if n := blocks(); n > 2*MapPageSize {
		t.Errorf("the shared map of an empty head takes %d bytes", n)
	}
	const many = 4 * maxKeptPages
	for i := range uint64(many) {
		l.Bitmap().Add(i*blocksPerPage*3, 1)
	}
	if n := blocks(); n < many*MapPageSize || n > (many+2)*MapPageSize {
		t.Errorf("with %d pages not flushed it takes %d bytes", many, n)
	}
	pages := l.Bitmap().TakeDirty(nil)
	test.Must(t, l.SyncData())
	test.Must(t, l.WriteMap(pages))
	test.Must(t, l.SyncMap())
	l.Bitmap().Add(1, 1) // in the first page, since they were taken
	l.Bitmap().flushed(pages)
	if n := blocks(); n > (maxKeptPages+2)*MapPageSize {
		t.Errorf("when they are flushed it takes %d bytes", n)
	}
	test.Must(t, l.Abandon())
	l = openHead(t, p, dir)
	if !l.Bitmap().Test(0) || !l.Bitmap().Test(1) || l.Bitmap().Count() != many+1 {
		t.Errorf("%d blocks, expected %d", l.Bitmap().Count(), many+1)
	}
}

// Without a directory in memory every bit has to be flushed and is not shared.
func TestNoPlaceForASharedMap(t *testing.T) {
	p := paths(t)
	test.Must(t, newHead(t, p, CreateParams{Size: 100 * DefaultBlockSize}).Close())
	for _, dir := range []string{t.TempDir(), "/dev/shm/missing/dir",
		"/dev/shm/" + strings.Repeat("x", 250)} {
		if _, err := Open(vfs.OS{}, p, OpenParams{Write: true, SharedDir: dir}); !errors.Is(err,
			ErrNoShared) && !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v, expected ErrNoShared", dir, err)
		}
	}
	l := openHead(t, p, "")
	if n, kept := l.Bitmap().Add(7, 3); n != 3 || kept {
		t.Errorf("%d, kept %v", n, kept)
	}
	test.Must(t, l.Close())
}

// Without memory for a page of the shared map its bits have to be flushed; bits of pages that have
// memory are shared, and all bits once there is memory again.
func TestSharedMapIsFull(t *testing.T) {
	p, dir := paths(t), sharedDir(t)
	test.Must(t, newHead(t, p, CreateParams{Size: 1 << 40}).Close())
	x := faultfs.OverShared(vfs.OS{}, nil)
	l := reopenOn(t, x, p, OpenParams{Write: true, SharedDir: dir})
	add := func(first, n, done uint64, kept bool) {
		t.Helper()
		_, err := l.Data().WriteAt(make([]byte, n*DefaultBlockSize), int64(first)*DefaultBlockSize)
		test.Must(t, err)
		if d, k := l.Bitmap().Add(first, n); d != done || k != kept || !l.Bitmap().Test(first) {
			t.Errorf("%d blocks from %d on: %d, kept %v; expected %d, %v", n, first, d, k, done,
				kept)
		}
	}
	add(blocksPerPage-1, 5, 1, true)
	x.OnCall(func(c faultfs.Call) error {
		if c.Op == "reserve" {
			return syscall.ENOSPC
		}
		return nil
	})
	add(blocksPerPage, 4, 4, false)
	add(0, 4, 4, true)
	flush(t, l)
	x.OnCall(nil)
	add(blocksPerPage+4, 4, 4, true)
	test.Must(t, l.Abandon())
	if n := openHead(t, p, dir).Bitmap().Count(); n != 13 {
		t.Errorf("%d blocks, expected 13", n)
	}
}

// A fault on the shared map does not end the process: from then on bits are flushed, and the next
// process takes the shared map for invalid.
func TestSharedMapFaults(t *testing.T) {
	p, dir := paths(t), sharedDir(t)
	test.Must(t, newHead(t, p, CreateParams{Size: 1 << 30}).Close())
	l := openHead(t, p, dir)
	write(t, l, 1, 1)
	test.Must(t, l.shared.file.Truncate(MapPageSize)) // every page behind it faults
	if n, kept := l.Bitmap().Add(2, 1); n != 1 || kept {
		t.Errorf("%d, kept %v, expected a bit that is not kept", n, kept)
	}
	if l.Bitmap().Shared() || !l.Bitmap().Test(2) {
		t.Error("the shared map counts as sound, or the bit is not set")
	}
	flush(t, l)
	test.Must(t, l.Abandon())
	if l, err := Open(vfs.OS{}, p, OpenParams{Write: true}); err == nil {
		if n := l.Bitmap().Count(); n != 2 {
			t.Errorf("%d blocks, expected the 2 that were flushed", n)
		}
		test.Must(t, l.Abandon())
	} else if !errors.Is(err, ErrUnflushed) {
		t.Error(err)
	}
}

// Pages of a shared map are freed and reserved again while bits are set in them: the next process
// finds every acknowledged bit, durable or not. More pages are used than keep their memory, so that
// every round's flushes free some.
func TestReleaseBesideAdd(t *testing.T) {
	const (
		pages, adders, adds, lives = 2 * maxKeptPages, 4, 1500, 12
		size                       = pages * blocksPerPage * DefaultBlockSize
	)
	dir, files := sharedDir(t), sharedDir(t)
	p := Paths{Map: filepath.Join(files, "map"), Data: filepath.Join(files, "data")}
	test.Must(t, newHead(t, p, CreateParams{Size: size}).Close())
	acked := map[uint64]bool{}
	released := uint64(0)
	for life := range uint64(lives) {
		l := openHead(t, p, dir)
		for block := range acked {
			if !l.Bitmap().Test(block) {
				t.Fatalf("life %d: block %d was acknowledged, and is not there", life, block)
			}
		}
		if n := l.Bitmap().Count(); n != uint64(len(acked)) {
			t.Fatalf("life %d: expected %d blocks, found %d", life, len(acked), n)
		}
		var added [adders][]uint64
		var wg sync.WaitGroup
		for i := range added {
			rng := rand.New(rand.NewPCG(life, uint64(i)))
			wg.Go(func() {
				for range adds {
					// Few bits per page, so that many pages are not dirty.
					block := rng.Uint64N(pages)*blocksPerPage + rng.Uint64N(64)*500
					if _, kept := l.Bitmap().Add(block, 1); !kept {
						t.Errorf("block %d is not kept", block)
						return
					}
					added[i] = append(added[i], block)
				}
			})
		}
		done := make(chan struct{})
		go func() { wg.Wait(); close(done) }()
		for running := true; running; {
			select {
			case <-done:
				running = false
			default:
			}
			if running || life%3 == 0 { // else what came last is in the shared map alone
				flush(t, l)
			}
		}
		for i := range l.Bitmap().locks {
			released += l.Bitmap().locks[i].released
		}
		for _, list := range added {
			for _, block := range list {
				acked[block] = true
			}
		}
		test.Must(t, l.Abandon()) // killed
	}
	if released == 0 {
		t.Error("no page was released: the test misses its subject")
	}
	t.Logf("%d blocks, %d pages released", len(acked), released)
}
