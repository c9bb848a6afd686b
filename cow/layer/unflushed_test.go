package layer

import (
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cowblk/cow/vfs"
)

// sharedDir is a directory in memory of the test's own.
func sharedDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "cowblk-test-")
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// sharedFiles are the shared maps in a directory.
func sharedFiles(t testing.TB, dir string) (files []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	must(t, err)
	for _, e := range entries {
		files = append(files, filepath.Join(dir, e.Name()))
	}
	return files
}

func openHead(t *testing.T, p Paths, dir string) *Layer {
	t.Helper()
	return reopen(t, p, OpenParams{Write: true, SharedDir: dir})
}

// dies makes a head with some blocks flushed and others not, whose process has died.
func dies(t *testing.T, p Paths, dir string, blocks uint64) (owned map[uint64]bool) {
	t.Helper()
	must(t, newHead(t, p, CreateParams{Size: int64(blocks) * DefaultBlockSize}).Close())
	l := openHead(t, p, dir)
	write(t, l, 1, 3)
	flush(t, l)
	write(t, l, 2, 70)
	write(t, l, blocks-1, 1)
	owned = sourceBits(t, l)
	must(t, l.Abandon())
	return owned
}

func flush(t testing.TB, l *Layer) {
	t.Helper()
	_, err := l.Flush(nil)
	must(t, err)
}

// The next process knows every block of the one that died, and makes it durable.
func TestRecoverUnflushed(t *testing.T) {
	for _, blocks := range []uint64{100, blocksPerPage, 3*blocksPerPage + 7} {
		p, dir := paths(t), sharedDir(t)
		owned := dies(t, p, dir, blocks)
		for _, o := range []OpenParams{{}, {Write: true}, {Write: true, SharedDir: dir}, {Write: true, SharedDir: sharedDir(t)}, {}} {
			l := reopen(t, p, o) // dies again before it has done anything
			if got := sourceBits(t, l); !maps.Equal(got, owned) || l.Bitmap().Count() != uint64(len(owned)) {
				t.Fatalf("%+v: %d blocks, count %d; expected %d", o, len(got), l.Bitmap().Count(), len(owned))
			}
			must(t, l.Abandon())
		}
		l := openHead(t, p, dir)
		must(t, l.Close())
		if files := sharedFiles(t, dir); len(files) != 0 {
			t.Errorf("a head that was closed has a shared map: %q", files)
		}
		l = reopen(t, p, OpenParams{})
		if got := sourceBits(t, l); !maps.Equal(got, owned) {
			t.Errorf("%d blocks are durable, expected %d", len(got), len(owned))
		}
	}
}

// A head that was detached is gone on with without another write; one that died is not.
func TestDetachedHead(t *testing.T) {
	p, dir := paths(t), sharedDir(t)
	must(t, newHead(t, p, CreateParams{Size: 100 * DefaultBlockSize}).Close())
	l := openHead(t, p, dir)
	write(t, l, 5, 2)
	must(t, l.Detach())
	before, err := os.ReadFile(p.Map)
	must(t, err)
	st, err := os.Stat(p.Map)
	must(t, err)
	l = openHead(t, p, dir)
	after, err := os.ReadFile(p.Map)
	must(t, err)
	again, err := os.Stat(p.Map)
	must(t, err)
	if string(before) != string(after) || !st.ModTime().Equal(again.ModTime()) {
		t.Error("the map was written")
	}
	if pages := l.Bitmap().TakeDirty(nil); len(pages) != 1 || !l.Bitmap().Test(5) || !l.Bitmap().Test(6) {
		t.Errorf("%d dirty pages, expected the one with what was not flushed", len(pages))
	}
}

// Memory follows what is not flushed, not what was written, nor the size.
func TestSharedMapGivesMemoryBack(t *testing.T) {
	dir, files := sharedDir(t), sharedDir(t) // ext4 has no files of this size
	p := Paths{Map: filepath.Join(files, "map"), Data: filepath.Join(files, "data")}
	const size = 64 << 40
	must(t, newHead(t, p, CreateParams{Size: size}).Close())
	l := openHead(t, p, dir)
	blocks := func() int64 {
		var st unix.Stat_t
		must(t, unix.Stat(sharedFiles(t, dir)[0], &st))
		return st.Blocks * 512
	}
	if n := blocks(); n > 2*MapPageSize {
		t.Errorf("the shared map of an empty head takes %d bytes", n)
	}
	const many = 4 * keptPages
	for i := range uint64(many) {
		if _, _, err := l.Bitmap().Add(i*blocksPerPage*3, 1); err != nil {
			t.Fatal(err)
		}
	}
	if n := blocks(); n < many*MapPageSize || n > (many+2)*MapPageSize {
		t.Errorf("with %d pages not flushed it takes %d bytes", many, n)
	}
	pages := l.Bitmap().TakeDirty(nil)
	must(t, l.SyncData())
	must(t, l.WriteMap(pages))
	must(t, l.SyncMap())
	if _, _, err := l.Bitmap().Add(1, 1); err != nil { // of the first page, since they were taken
		t.Fatal(err)
	}
	l.Bitmap().Flushed(pages)
	if n := blocks(); n > (keptPages+2)*MapPageSize {
		t.Errorf("when they are flushed it takes %d bytes", n)
	}
	must(t, l.Abandon())
	l = openHead(t, p, dir)
	if !l.Bitmap().Test(0) || !l.Bitmap().Test(1) || l.Bitmap().Count() != many+1 {
		t.Errorf("%d blocks, expected %d", l.Bitmap().Count(), many+1)
	}
}

// A former head that is still to be sealed: a reader knows all its blocks without a
// change to any file, and sealing makes them durable.
func TestRecoveredAndSealed(t *testing.T) {
	p, dir := paths(t), sharedDir(t)
	owned := dies(t, p, dir, 200)
	l := openHead(t, p, "")
	must(t, l.Seal(time.Now()))
	must(t, l.Close())
	if files := sharedFiles(t, dir); len(files) != 0 {
		t.Errorf("a sealed layer has a shared map: %q", files)
	}
	l = reopen(t, p, OpenParams{})
	if got := sourceBits(t, l); !maps.Equal(got, owned) {
		t.Errorf("%d blocks are sealed, expected %d", len(got), len(owned))
	}
}

// A former head that others read cannot be sealed, and owes nothing all the same:
// another run of the kernel finds every block.
func TestMakeDurableBesideReaders(t *testing.T) {
	p, dir := paths(t), sharedDir(t)
	owned := dies(t, p, dir, 200)
	one, two := reopen(t, p, OpenParams{}), reopen(t, p, OpenParams{})
	if _, err := Open(vfs.OS{}, p, OpenParams{Write: true}); !errors.Is(err, ErrInUse) {
		t.Fatalf("%v, expected ErrInUse", err)
	}
	must(t, one.MakeDurable())
	must(t, two.MakeDurable()) // at the same time, or a bit later
	must(t, one.MakeDurable())
	if files := sharedFiles(t, dir); len(files) != 0 {
		t.Errorf("a layer that owes nothing has a shared map: %q", files)
	}
	must(t, one.Abandon())
	must(t, two.Abandon())
	l := openHead(t, p, dir)
	if got := sourceBits(t, l); !maps.Equal(got, owned) {
		t.Errorf("%d blocks, expected %d", len(got), len(owned))
	}
}

// changeHeader changes the header as no process of this run of the kernel would.
func changeHeader(t *testing.T, p Paths, change func(h *Header)) {
	t.Helper()
	raw, err := os.ReadFile(p.Map)
	must(t, err)
	sector := [SectorSize]byte(raw[:SectorSize])
	h, err := decodeHeader(&sector)
	must(t, err)
	change(&h)
	h.encode(&sector)
	f, err := os.OpenFile(p.Map, os.O_WRONLY, 0)
	must(t, err)
	_, err = f.WriteAt(sector[:], 0)
	must(t, errors.Join(err, f.Close()))
}

// What is not true any more is not believed: what was flushed counts.
func TestSharedMapNotBelieved(t *testing.T) {
	replaced := func(t *testing.T, path string) {
		p, err := os.ReadFile(path)
		must(t, err)
		must(t, os.Rename(path, path+".kept")) // its inode is not free
		must(t, os.WriteFile(path, p, 0o600))
	}
	for name, change := range map[string]func(t *testing.T, p Paths, shared string){
		"another run of the kernel": func(t *testing.T, p Paths, _ string) {
			changeHeader(t, p, func(h *Header) { h.Boot[0]++ })
		},
		"another map":  func(t *testing.T, p Paths, _ string) { replaced(t, p.Map) },
		"another data": func(t *testing.T, p Paths, _ string) { replaced(t, p.Data) },
		"a copy of the map was put back in its place": func(t *testing.T, p Paths, _ string) {
			raw, err := os.ReadFile(p.Map)
			must(t, err)
			must(t, os.WriteFile(p.Map, raw, 0o600))
		},
		"an older version had it open": func(t *testing.T, p Paths, _ string) {
			changeHeader(t, p, func(h *Header) { h.Features.ClearOnOpen = 0 })
		},
		"closed since, and opened without a shared map": func(t *testing.T, p Paths, shared string) {
			raw, err := os.ReadFile(shared)
			must(t, err)
			changeHeader(t, p, func(h *Header) { h.clearShared() })
			must(t, reopen(t, p, OpenParams{Write: true}).Abandon())
			must(t, os.WriteFile(shared, raw, 0o600))
		},
		"a sync has failed": func(t *testing.T, p Paths, _ string) {
			l := reopen(t, p, OpenParams{Write: true})
			l.data = failingSync{l.data}
			if err := l.SyncData(); !errors.Is(err, syscall.EIO) {
				t.Fatal(err)
			}
			must(t, l.Abandon())
		},
	} {
		t.Run(name, func(t *testing.T) {
			p, dir := paths(t), sharedDir(t)
			dies(t, p, dir, 200)
			change(t, p, sharedFiles(t, dir)[0])
			l := reopen(t, p, OpenParams{})
			if n := l.Bitmap().Count(); n != 3 {
				t.Errorf("%d blocks for a reader, expected 3", n)
			}
			must(t, l.Abandon())
			l = openHead(t, p, dir)
			if n := l.Bitmap().Count(); n != 3 {
				t.Errorf("%d blocks, expected 3", n)
			}
			write(t, l, 50, 1)
			must(t, l.Abandon())
			l = openHead(t, p, dir)
			if n := l.Bitmap().Count(); n != 4 {
				t.Errorf("%d blocks after another death, expected 4", n)
			}
		})
	}
}

// A clean head has no shared map, whatever lies where one was.
func TestCleanHeadBelievesNothing(t *testing.T) {
	p, dir := paths(t), sharedDir(t)
	dies(t, p, dir, 200)
	shared := sharedFiles(t, dir)[0]
	raw, err := os.ReadFile(shared)
	must(t, err)
	l := reopen(t, p, OpenParams{Write: true, Unflushed: DropUnflushed})
	must(t, l.Close())
	must(t, os.WriteFile(shared, raw, 0o600))
	if n := openHead(t, p, dir).Bitmap().Count(); n != 3 {
		t.Errorf("%d blocks, expected 3", n)
	}
}

// What exists, or should, and cannot be read refuses the open, which changes nothing.
func TestUnreadableSharedMapIsRefused(t *testing.T) {
	for name, change := range map[string]func(t *testing.T, file string){
		"gone": func(t *testing.T, file string) { must(t, os.Remove(file)) },
		"a link": func(t *testing.T, file string) {
			must(t, os.Rename(file, file+"~"))
			must(t, os.Symlink(file+"~", file))
		},
		"a FIFO":    func(t *testing.T, file string) { must(t, os.Remove(file)); must(t, unix.Mkfifo(file, 0o600)) },
		"empty":     func(t *testing.T, file string) { must(t, os.Truncate(file, 0)) },
		"cut short": func(t *testing.T, file string) { must(t, os.Truncate(file, 5000)) },
		"identity damaged": func(t *testing.T, file string) {
			f, err := os.OpenFile(file, os.O_WRONLY, 0)
			must(t, err)
			_, err = f.WriteAt([]byte{1}, 100)
			must(t, errors.Join(err, f.Close()))
		},
	} {
		t.Run(name, func(t *testing.T) {
			p, dir := paths(t), sharedDir(t)
			dies(t, p, dir, 200)
			change(t, sharedFiles(t, dir)[0])
			before, err := os.ReadFile(p.Map)
			must(t, err)
			for _, write := range []bool{true, false} {
				l, err := Open(vfs.OS{}, p, OpenParams{Write: write, SharedDir: dir})
				if !errors.Is(err, ErrUnflushed) || !strings.Contains(err.Error(), "--drop-unflushed") {
					t.Errorf("write %v: %v, expected ErrUnflushed with advice", write, err)
				}
				if err == nil {
					must(t, l.Abandon())
				}
			}
			if after, err := os.ReadFile(p.Map); err != nil || string(after) != string(before) {
				t.Errorf("the refused open has changed the map; %v", err)
			}
			l := reopen(t, p, OpenParams{Write: true, SharedDir: dir, Unflushed: DropUnflushed})
			if n := l.Bitmap().Count(); n != 3 {
				t.Errorf("%d blocks after they were given up, expected 3", n)
			}
		})
	}
}

// openFails is a file system that one kind of call fails on.
type openFails struct {
	vfs.OS
	boot, open, instance, syncFS error
	evicted                      bool
}

func (f openFails) Boot() (string, error) {
	name, err := f.OS.Boot()
	return name, errors.Join(err, f.boot)
}

func (f openFails) Evicted(vfs.File) (bool, error) { return f.evicted, nil }

func (f openFails) SyncFS(vfs.File) error { return f.syncFS }

func (f openFails) Instance(o vfs.File) (string, error) {
	name, err := f.OS.Instance(o)
	return name, errors.Join(err, f.instance)
}

func (f openFails) OpenShared(name string, flag int, perm fs.FileMode) (vfs.SharedFile, error) {
	if f.open != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: f.open}
	}
	return f.OS.OpenShared(name, flag, perm)
}

// An open that fails once loses nothing: it is refused, and the next one finds all.
func TestOpenThatFailsOnce(t *testing.T) {
	for name, f := range map[string]openFails{
		"too many open files":             {open: syscall.EMFILE},
		"too many open files in all":      {open: syscall.ENFILE},
		"no memory":                       {open: syscall.ENOMEM},
		"an I/O error":                    {open: syscall.EIO},
		"no permission":                   {open: syscall.EACCES},
		"no /proc":                        {boot: fs.ErrNotExist},
		"the file system has no instance": {instance: errors.ErrUnsupported},
	} {
		t.Run(name, func(t *testing.T) {
			p, dir := paths(t), sharedDir(t)
			owned := dies(t, p, dir, 200)
			for _, write := range []bool{true, false} {
				if l, err := Open(f, p, OpenParams{Write: write, SharedDir: dir}); !errors.Is(err, ErrUnflushed) {
					t.Errorf("write %v: %v, expected ErrUnflushed", write, err)
					_ = l.Abandon()
				}
			}
			if got := sourceBits(t, openHead(t, p, dir)); !maps.Equal(got, owned) {
				t.Errorf("%d blocks, expected %d", len(got), len(owned))
			}
		})
	}
}

// Another owner or mode is no change of the content, and a copy with its old times is:
// which of the two it was only a person knows.
func TestMapChangedByWhom(t *testing.T) {
	p, dir := paths(t), sharedDir(t)
	owned := dies(t, p, dir, 200)
	must(t, os.Chmod(p.Map, 0o640))
	if _, err := Open(vfs.OS{}, p, OpenParams{Write: true}); !errors.Is(err, ErrUnflushed) || !strings.Contains(err.Error(), "--keep-unflushed") {
		t.Errorf("%v, expected ErrUnflushed with advice", err)
	}
	l := reopen(t, p, OpenParams{Unflushed: DropUnflushed})
	if n := l.Bitmap().Count(); n != 3 {
		t.Errorf("%d blocks, expected 3", n)
	}
	must(t, l.Abandon())
	l = reopen(t, p, OpenParams{Write: true, Unflushed: KeepUnflushed})
	if got := sourceBits(t, l); !maps.Equal(got, owned) {
		t.Errorf("%d blocks, expected %d", len(got), len(owned))
	}
}

// A shared map that contradicts the layer is refused, and nothing is lost of the layer.
func TestSharedMapContradicts(t *testing.T) {
	p, dir := paths(t), sharedDir(t)
	dies(t, p, dir, 200)
	f, err := os.OpenFile(sharedFiles(t, dir)[0], os.O_WRONLY, 0)
	must(t, err)
	_, err = f.WriteAt([]byte{1}, MapPageSize+200/8) // block 200 of 200
	must(t, errors.Join(err, f.Close()))
	for _, write := range []bool{true, false} {
		if _, err := Open(vfs.OS{}, p, OpenParams{Write: write}); !errors.Is(err, ErrDamaged) {
			t.Errorf("%v, expected ErrDamaged", err)
		}
	}
}

// Nothing is in memory to be had: every bit has to be flushed, and is not kept.
func TestNoPlaceForASharedMap(t *testing.T) {
	p := paths(t)
	must(t, newHead(t, p, CreateParams{Size: 100 * DefaultBlockSize}).Close())
	for _, dir := range []string{t.TempDir(), "/dev/shm/missing/dir", "/dev/shm/" + strings.Repeat("x", 250)} {
		if _, err := Open(vfs.OS{}, p, OpenParams{Write: true, SharedDir: dir}); !errors.Is(err, ErrNoShared) && !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v, expected ErrNoShared", dir, err)
		}
	}
	l := openHead(t, p, "")
	if n, kept, err := l.Bitmap().Add(7, 3); n != 3 || kept || err != nil {
		t.Errorf("%d, kept %v, %v", n, kept, err)
	}
	must(t, l.Close())
}

// No memory is left for a page of the shared map: the write fails as on a full file
// system, and can be repeated.
func TestSharedMapIsFull(t *testing.T) {
	p, dir := paths(t), sharedDir(t)
	must(t, newHead(t, p, CreateParams{Size: 1 << 40}).Close())
	l := openHead(t, p, dir)
	full := &fullFile{SharedFile: l.shared.file}
	l.shared.file = full
	if n, _, err := l.Bitmap().Add(blocksPerPage-1, 5); n != 1 || err != nil {
		t.Errorf("%d, %v, expected the one block of the first page", n, err)
	}
	full.err = syscall.ENOSPC
	if n, _, err := l.Bitmap().Add(blocksPerPage, 4); n != 0 || !errors.Is(err, syscall.ENOSPC) || l.Bitmap().Test(blocksPerPage) {
		t.Errorf("%d, %v, expected ENOSPC and no bit", n, err)
	}
	if n, kept, err := l.Bitmap().Add(0, 4); n != 4 || !kept || err != nil {
		t.Errorf("where there is memory: %d, %v, %v", n, kept, err)
	}
	full.err = nil
	if n, kept, err := l.Bitmap().Add(blocksPerPage, 4); n != 4 || !kept || err != nil {
		t.Errorf("%d, kept %v, %v", n, kept, err)
	}
}

// The data was evicted since the process died. What the file system then says of errors
// counts for all disks on it that were killed before, and is told once.
func TestWriteBackFailedAfterTheDeath(t *testing.T) {
	dir := sharedDir(t)
	type disk struct {
		p     Paths
		owned map[uint64]bool
	}
	var disks []disk
	for range 3 {
		p := paths(t)
		disks = append(disks, disk{p, dies(t, p, dir, 200)})
	}
	l := reopenOn(t, openFails{evicted: true}, disks[0].p, OpenParams{})
	if got := sourceBits(t, l); !maps.Equal(got, disks[0].owned) || l.Lost() != nil {
		t.Errorf("no error: %d blocks, expected %d; lost: %v", len(got), len(disks[0].owned), l.Lost())
	}
	must(t, l.Abandon())
	for i, f := range []openFails{{evicted: true, syncFS: syscall.EIO}, {evicted: true}} {
		l := reopenOn(t, f, disks[i].p, OpenParams{Write: true, SharedDir: dir})
		if n := l.Bitmap().Count(); n != 3 || l.Lost() == nil {
			t.Errorf("disk %d: %d blocks, expected 3; lost: %v", i, n, l.Lost())
		}
		write(t, l, 50, 1) // of a head that was opened after the error
		must(t, l.Abandon())
		l = reopenOn(t, openFails{evicted: true}, disks[i].p, OpenParams{Write: true})
		if n := l.Bitmap().Count(); n != 4 || l.Lost() != nil {
			t.Errorf("disk %d, once more: %d blocks, expected 4; lost: %v", i, n, l.Lost())
		}
		must(t, l.Abandon())
	}
	// Still in memory: its own sync will tell.
	if got := sourceBits(t, reopenOn(t, openFails{}, disks[2].p, OpenParams{})); !maps.Equal(got, disks[2].owned) {
		t.Errorf("%d blocks, expected %d", len(got), len(disks[2].owned))
	}
}

// A hole under what was not flushed, evicted since: nobody can tell what it was.
func TestHoleAfterTheDeath(t *testing.T) {
	p, dir := paths(t), sharedDir(t)
	owned := dies(t, p, dir, 200)
	f, err := os.OpenFile(p.Data, os.O_RDWR, 0)
	must(t, err)
	must(t, unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 40*DefaultBlockSize, 8*DefaultBlockSize))
	must(t, f.Close())
	if _, err := Open(openFails{evicted: true}, p, OpenParams{}); !errors.Is(err, ErrUnflushed) || !strings.Contains(err.Error(), "--keep-unflushed") {
		t.Errorf("%v, expected ErrUnflushed with advice", err)
	}
	for _, l := range []*Layer{reopenOn(t, openFails{}, p, OpenParams{}), reopenOn(t, openFails{evicted: true}, p, OpenParams{Unflushed: KeepUnflushed})} {
		if got := sourceBits(t, l); !maps.Equal(got, owned) {
			t.Errorf("%d blocks, expected %d", len(got), len(owned))
		}
	}
}

func reopenOn(t *testing.T, f vfs.FS, p Paths, o OpenParams) *Layer {
	t.Helper()
	l, err := Open(f, p, o)
	must(t, err)
	t.Cleanup(func() { _ = l.Abandon() })
	return l
}

// The data alone was put back, with its old times.
func TestDataChangedByWhom(t *testing.T) {
	p, dir := paths(t), sharedDir(t)
	owned := dies(t, p, dir, 200)
	past := time.Now().Add(-time.Hour)
	must(t, os.Chtimes(p.Data, past, past))
	if _, err := Open(vfs.OS{}, p, OpenParams{Write: true}); !errors.Is(err, ErrUnflushed) || !strings.Contains(err.Error(), p.Data) {
		t.Errorf("%v, expected ErrUnflushed of the data", err)
	}
	l := reopen(t, p, OpenParams{Write: true, Unflushed: KeepUnflushed})
	if got := sourceBits(t, l); !maps.Equal(got, owned) {
		t.Errorf("%d blocks, expected %d", len(got), len(owned))
	}
	must(t, l.Close())
	// A store that was copied with its times is served and killed without a write.
	must(t, os.Chtimes(p.Data, past, past))
	must(t, openHead(t, p, dir).Abandon())
	must(t, openHead(t, p, dir).Abandon())
}

type fullFile struct {
	vfs.SharedFile
	err error
}

func (f *fullFile) Reserve(off, n int64) error {
	if f.err != nil {
		return f.err
	}
	return f.SharedFile.Reserve(off, n)
}

// A fault on the shared map ends no process: what it would have kept is flushed from
// then on, and the next process does not believe it.
func TestSharedMapFaults(t *testing.T) {
	p, dir := paths(t), sharedDir(t)
	must(t, newHead(t, p, CreateParams{Size: 1 << 30}).Close())
	l := openHead(t, p, dir)
	write(t, l, 1, 1)
	must(t, l.shared.file.Truncate(MapPageSize)) // every page behind it faults
	if n, kept, err := l.Bitmap().Add(2, 1); n != 1 || kept || err != nil {
		t.Errorf("%d, kept %v, %v, expected a bit that is not kept", n, kept, err)
	}
	if l.Bitmap().Shared() || !l.Bitmap().Test(2) {
		t.Error("the shared map counts as sound, or the bit is not set")
	}
	flush(t, l)
	must(t, l.Abandon())
	if l, err := Open(vfs.OS{}, p, OpenParams{Write: true}); err == nil {
		if n := l.Bitmap().Count(); n != 2 {
			t.Errorf("%d blocks, expected the 2 that were flushed", n)
		}
		must(t, l.Abandon())
	} else if !errors.Is(err, ErrUnflushed) {
		t.Error(err)
	}
}

// What the page cache may hold of data that a failed sync has lost is forgotten before
// anybody reads it; not so after a mere death, or a close.
func TestCacheIsDropped(t *testing.T) {
	failed := func(l *Layer) error { l.shared.giveUp(); return l.Abandon() }
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
			must(t, newHead(t, p, CreateParams{Size: 100 * DefaultBlockSize}).Close())
			l := openHead(t, p, dir)
			write(t, l, 1, 1)
			must(t, c.end(l))
			drops := 0
			l, err := Open(&dropCounter{drops: &drops}, p, OpenParams{Write: c.write})
			must(t, err)
			if drops != c.drops {
				t.Errorf("the cache was dropped %d times, expected %d", drops, c.drops)
			}
			must(t, l.Abandon())
		})
	}
}

// dropCounter counts DropCache; for SharedFS its files are those of the OS.
type dropCounter struct {
	vfs.OS
	drops *int
}

func (d *dropCounter) OpenFile(name string, flag int, perm fs.FileMode) (vfs.File, error) {
	f, err := d.OS.OpenFile(name, flag, perm)
	if err != nil {
		return nil, err
	}
	return &countedFile{f, d.drops}, nil
}

func (d *dropCounter) Instance(f vfs.File) (string, error) {
	return d.OS.Instance(f.(*countedFile).File)
}

func (d *dropCounter) Evicted(f vfs.File) (bool, error) {
	return d.OS.Evicted(f.(*countedFile).File)
}

func (d *dropCounter) Changed(f vfs.File) (int64, error) {
	return d.OS.Changed(f.(*countedFile).File)
}

type countedFile struct {
	vfs.File
	drops *int
}

func (c *countedFile) DropCache() error {
	*c.drops++
	return c.File.DropCache()
}

type failingSync struct{ vfs.File }

func (failingSync) Datasync() error { return syscall.EIO }

// A copy of a store that was not closed leaves the shared map of the original alone.
func TestCopyLeavesTheOriginalsSharedMap(t *testing.T) {
	p, dir := paths(t), sharedDir(t)
	owned := dies(t, p, dir, 200)
	c := paths(t)
	for _, f := range [][2]string{{p.Map, c.Map}, {p.Data, c.Data}} {
		raw, err := os.ReadFile(f[0])
		must(t, err)
		must(t, os.WriteFile(f[1], raw, 0o600))
	}
	l := openHead(t, c, dir)
	if n := l.Bitmap().Count(); n != 3 {
		t.Errorf("%d blocks of the copy, expected 3", n)
	}
	must(t, l.Close())
	must(t, RemoveShared(vfs.OS{}, c))
	if got := sourceBits(t, openHead(t, p, dir)); !maps.Equal(got, owned) {
		t.Errorf("%d blocks, expected %d", len(got), len(owned))
	}
}

// Repair of a map does not make what a process has left of it unbelievable.
func TestRepairKeepsUnflushed(t *testing.T) {
	p, dir := paths(t), sharedDir(t)
	owned := dies(t, p, dir, 200)
	f, err := os.OpenFile(p.Map, os.O_RDWR, 0)
	must(t, err)
	var b [1]byte
	_, err = f.ReadAt(b[:], 300)
	must(t, err)
	b[0] ^= 4
	_, err = f.WriteAt(b[:], 300)
	must(t, errors.Join(err, f.Close()))
	h, err := ReadHeader(vfs.OS{}, p.Map)
	if !errors.Is(err, ErrDamaged) {
		t.Fatalf("%v, %+v", err, h)
	}
	l, err := decodeWith(t, p, 300, 4)
	must(t, err)
	done, err := Repair(vfs.OS{}, p, Known{UUID: l.UUID, BlockSize: l.BlockSize, Size: l.Size, Created: l.Created})
	if err != nil || len(done) != 1 {
		t.Fatalf("%v, %v", done, err)
	}
	if got := sourceBits(t, openHead(t, p, dir)); !maps.Equal(got, owned) {
		t.Errorf("%d blocks, expected %d", len(got), len(owned))
	}
}

// decodeWith is the header with one bit turned back.
func decodeWith(t *testing.T, p Paths, at int, bit byte) (Header, error) {
	t.Helper()
	raw, err := os.ReadFile(p.Map)
	must(t, err)
	sector := [SectorSize]byte(raw[:SectorSize])
	sector[at] ^= bit
	return decodeHeader(&sector)
}
