package layer

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"testing"
	"time"

	"cowblk/cow/cowtest/faultfs"
	"cowblk/cow/vfs"
	"cowblk/internal/test"
)

// sharedDir returns a directory in memory for one test.
func sharedDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "cowblk-test-")
	test.Must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// sharedFiles returns the shared maps in a directory.
func sharedFiles(t testing.TB, dir string) (files []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	test.Must(t, err)
	for _, e := range entries {
		files = append(files, filepath.Join(dir, e.Name()))
	}
	return files
}

func openHead(t *testing.T, p Paths, dir string) *Layer {
	t.Helper()
	return reopen(t, p, OpenParams{Write: true, SharedDir: dir})
}

// killHead makes a head with some blocks flushed and others not, whose process was killed.
func killHead(t *testing.T, p Paths, dir string, blocks uint64) (owned map[uint64]bool) {
	t.Helper()
	test.Must(t, newHead(t, p, CreateParams{Size: int64(blocks) * DefaultBlockSize}).Close())
	l := openHead(t, p, dir)
	write(t, l, 1, 3)
	flush(t, l)
	write(t, l, 2, 70)
	write(t, l, blocks-1, 1)
	owned = sourceBits(t, l)
	test.Must(t, l.Abandon())
	return owned
}

func flush(t testing.TB, l *Layer) {
	t.Helper()
	_, err := l.Flush(nil)
	test.Must(t, err)
}

// The next process finds every block of the process that died, and makes it durable.
func TestRecoverUnflushed(t *testing.T) {
	for _, blocks := range []uint64{100, blocksPerPage, 3*blocksPerPage + 7} {
		p, dir := paths(t), sharedDir(t)
		owned := killHead(t, p, dir, blocks)
		for _, o := range []OpenParams{{}, {Write: true}, {Write: true, SharedDir: dir},
			{Write: true, SharedDir: sharedDir(t)}, {}} {
			l := reopen(t, p, o) // killed again before it has done anything
			if got := sourceBits(t, l); !maps.Equal(got, owned) ||
				l.Bitmap().Count() != uint64(len(owned)) {
				t.Fatalf("%+v: %d blocks, count %d; expected %d", o, len(got), l.Bitmap().Count(),
					len(owned))
			}
			test.Must(t, l.Abandon())
		}
		l := openHead(t, p, dir)
		test.Must(t, l.Close())
		if files := sharedFiles(t, dir); len(files) != 0 {
			t.Errorf("a head that was closed has a shared map: %q", files)
		}
		l = reopen(t, p, OpenParams{})
		if got := sourceBits(t, l); !maps.Equal(got, owned) {
			t.Errorf("%d blocks are durable, expected %d", len(got), len(owned))
		}
	}
}

// A detached head continues without another write; the head of a process that died does not.
func TestDetachedHead(t *testing.T) {
	p, dir := paths(t), sharedDir(t)
	test.Must(t, newHead(t, p, CreateParams{Size: 100 * DefaultBlockSize}).Close())
	l := openHead(t, p, dir)
	write(t, l, 5, 2)
	test.Must(t, l.Detach())
	before := readFile(t, p.Map)
	st, err := os.Stat(p.Map)
	test.Must(t, err)
	l = openHead(t, p, dir)
	after := readFile(t, p.Map)
	again, err := os.Stat(p.Map)
	test.Must(t, err)
	if string(before) != string(after) || !st.ModTime().Equal(again.ModTime()) {
		t.Error("the map was written")
	}
	if pages := l.Bitmap().TakeDirty(nil); len(pages) != 1 || !l.Bitmap().Test(5) ||
		!l.Bitmap().Test(6) {
		t.Errorf("%d dirty pages, expected the one with what was not flushed", len(pages))
	}
}

// A former head that is not sealed: a reader finds all its blocks without changing a file, and
// sealing makes them durable.
func TestRecoveredAndSealed(t *testing.T) {
	p, dir := paths(t), sharedDir(t)
	owned := killHead(t, p, dir, 200)
	l := openHead(t, p, "")
	test.Must(t, l.Seal(time.Now()))
	test.Must(t, l.Close())
	if files := sharedFiles(t, dir); len(files) != 0 {
		t.Errorf("a sealed layer has a shared map: %q", files)
	}
	l = reopen(t, p, OpenParams{})
	if got := sourceBits(t, l); !maps.Equal(got, owned) {
		t.Errorf("%d blocks are sealed, expected %d", len(got), len(owned))
	}
}

// A former head that others read cannot be sealed, but can be made durable: another run of the
// kernel finds every block.
func TestMakeDurableBesideReaders(t *testing.T) {
	p, dir := paths(t), sharedDir(t)
	owned := killHead(t, p, dir, 200)
	one, two := reopen(t, p, OpenParams{}), reopen(t, p, OpenParams{})
	test.ErrorIs(t, test.Err(Open(vfs.OS{}, p, OpenParams{Write: true})), ErrInUse, "error")
	test.Must(t, one.MakeDurable())
	test.Must(t, two.MakeDurable()) // at the same time, or a bit later
	test.Must(t, one.MakeDurable())
	if files := sharedFiles(t, dir); len(files) != 0 {
		t.Errorf("a layer that owes nothing has a shared map: %q", files)
	}
	test.Must(t, one.Abandon())
	test.Must(t, two.Abandon())
	l := openHead(t, p, dir)
	if got := sourceBits(t, l); !maps.Equal(got, owned) {
		t.Errorf("%d blocks, expected %d", len(got), len(owned))
	}
}

// Repair of a map does not invalidate its shared map.
func TestRepairKeepsUnflushed(t *testing.T) {
	p, dir := paths(t), sharedDir(t)
	owned := killHead(t, p, dir, 200)
	f, err := os.OpenFile(p.Map, os.O_RDWR, 0)
	test.Must(t, err)
	var b [1]byte
	test.Must(t, test.Err(f.ReadAt(b[:], 300)))
	b[0] ^= 4
	_, err = f.WriteAt(b[:], 300)
	test.Must(t, errors.Join(err, f.Close()))
	h, err := ReadHeader(vfs.OS{}, p.Map)
	if !errors.Is(err, ErrDamaged) {
		t.Fatalf("%v, %+v", err, h)
	}
	l, err := decodeWith(t, p, 300, 4)
	test.Must(t, err)
	done, err := Repair(vfs.OS{}, p, Known{UUID: l.UUID, BlockSize: l.BlockSize, Size: l.Size,
		Created: l.Created})
	if err != nil || len(done) != 1 {
		t.Fatalf("%v, %v", done, err)
	}
	if got := sourceBits(t, openHead(t, p, dir)); !maps.Equal(got, owned) {
		t.Errorf("%d blocks, expected %d", len(got), len(owned))
	}
}

// decodeWith returns the header with one bit inverted.
func decodeWith(t *testing.T, p Paths, at int, bit byte) (Header, error) {
	t.Helper()
	raw := readFile(t, p.Map)
	sector := [SectorSize]byte(raw[:SectorSize])
	sector[at] ^= bit
	return decodeHeader(&sector)
}

// Between a reader's read of the header and its open of the shared map another process makes the
// layer durable: the reader finds every block in the map.
func TestMadeDurableMeanwhile(t *testing.T) {
	p, dir := paths(t), sharedDir(t)
	owned := killHead(t, p, dir, 200)
	other := reopen(t, p, OpenParams{})
	x := faultfs.OverShared(vfs.OS{}, nil)
	x.OnCall(func(c faultfs.Call) error {
		if c.Op != "open shared" {
			return nil
		}
		x.OnCall(nil)
		return other.MakeDurable()
	})
	l := reopenOn(t, x, p, OpenParams{})
	if got := sourceBits(t, l); !maps.Equal(got, owned) {
		t.Errorf("%d blocks, expected %d", len(got), len(owned))
	}
}

// A map that an open after a kill has to write again, for its last sync may have failed, is written
// by the first flush, also if that is in a process that has taken the head over in between.
func TestMapIsWrittenAgainAfterADetach(t *testing.T) {
	p, dir := paths(t), sharedDir(t)
	test.Must(t, newHead(t, p, CreateParams{Size: 100 * DefaultBlockSize}).Close())
	l := openHead(t, p, dir)
	write(t, l, 5, 2)
	flush(t, l)
	test.Must(t, l.Abandon()) // killed
	for range 2 {
		l = openHead(t, p, dir)
		test.Must(t, l.Detach())
	}
	l = openHead(t, p, dir)
	pages, err := l.Flush(nil)
	test.Must(t, err)
	if len(pages) != 1 {
		t.Errorf("the flush has written %d pages of the map, expected 1", len(pages))
	}
	test.Must(t, l.Detach())
	l = openHead(t, p, dir)
	if pages, err = l.Flush(nil); err != nil || len(pages) != 0 {
		t.Errorf("the next flush has written %d pages, expected none; %v", len(pages), err)
	}
	test.Must(t, l.Close())
}
