package layer

import (
	"errors"
	"io/fs"
	"maps"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cowblk/cow/cowtest/faultfs"
	"cowblk/cow/vfs"
	"cowblk/internal/test"
)

// changeHeader changes the header in a way that no process of this run of the kernel does.
func changeHeader(t *testing.T, p Paths, change func(h *Header)) {
	t.Helper()
	raw := readFile(t, p.Map)
	sector := [SectorSize]byte(raw[:SectorSize])
	h, err := decodeHeader(&sector)
	test.Must(t, err)
	change(&h)
	h.encode(&sector)
	f, err := os.OpenFile(p.Map, os.O_WRONLY, 0)
	test.Must(t, err)
	_, err = f.WriteAt(sector[:], 0)
	test.Must(t, errors.Join(err, f.Close()))
}

// A shared map that does not match any more is invalid: only what was flushed counts.
func TestInvalidSharedMap(t *testing.T) {
	replaced := func(t *testing.T, path string) {
		p := readFile(t, path)
		test.Must(t, os.Rename(path, path+".kept")) // its inode stays in use
		test.Must(t, os.WriteFile(path, p, 0o600))
	}
	for name, change := range map[string]func(t *testing.T, p Paths, shared string){
		"another run of the kernel": func(t *testing.T, p Paths, _ string) {
			changeHeader(t, p, func(h *Header) { h.Boot[0]++ })
		},
		"another map":  func(t *testing.T, p Paths, _ string) { replaced(t, p.Map) },
		"another data": func(t *testing.T, p Paths, _ string) { replaced(t, p.Data) },
		"a copy of the map was put back in its place": func(t *testing.T, p Paths, _ string) {
			raw := readFile(t, p.Map)
			test.Must(t, os.WriteFile(p.Map, raw, 0o600))
		},
		"an older version had it open": func(t *testing.T, p Paths, _ string) {
			changeHeader(t, p, func(h *Header) { h.Features.ClearOnOpen = 0 })
		},
		"closed since, and opened without a shared map": func(t *testing.T, p Paths,
			shared string) {
			raw := readFile(t, shared)
			changeHeader(t, p, func(h *Header) { h.clearShared() })
			test.Must(t, reopen(t, p, OpenParams{Write: true}).Abandon())
			test.Must(t, os.WriteFile(shared, raw, 0o600))
		},
		"a sync has failed": func(t *testing.T, p Paths, _ string) {
			x := faultfs.OverShared(vfs.OS{}, nil)
			l := reopenOn(t, x, p, OpenParams{Write: true})
			x.OnCall(func(faultfs.Call) error { return syscall.EIO })
			test.ErrorIs(t, l.SyncData(), syscall.EIO, "error")
			x.OnCall(nil)
			test.Must(t, l.Abandon())
		},
	} {
		t.Run(name, func(t *testing.T) {
			p, dir := paths(t), sharedDir(t)
			killHead(t, p, dir, 200)
			change(t, p, sharedFiles(t, dir)[0])
			l := reopen(t, p, OpenParams{})
			if n := l.Bitmap().Count(); n != 3 {
				t.Errorf("%d blocks for a reader, expected 3", n)
			}
			test.Must(t, l.Abandon())
			l = openHead(t, p, dir)
			if n := l.Bitmap().Count(); n != 3 {
				t.Errorf("%d blocks, expected 3", n)
			}
			write(t, l, 50, 1)
			test.Must(t, l.Abandon())
			l = openHead(t, p, dir)
			if n := l.Bitmap().Count(); n != 4 {
				t.Errorf("%d blocks after another death, expected 4", n)
			}
		})
	}
}

// A clean head has no shared map, even if there is a file in its place.
func TestCleanHeadIgnoresSharedMaps(t *testing.T) {
	p, dir := paths(t), sharedDir(t)
	killHead(t, p, dir, 200)
	shared := sharedFiles(t, dir)[0]
	raw := readFile(t, shared)
	l := reopen(t, p, OpenParams{Write: true, Unflushed: DropUnflushed})
	test.Must(t, l.Close())
	test.Must(t, os.WriteFile(shared, raw, 0o600))
	if n := openHead(t, p, dir).Bitmap().Count(); n != 3 {
		t.Errorf("%d blocks, expected 3", n)
	}
}

// A shared map that exists, or should, and cannot be read refuses the open, which changes nothing.
func TestUnreadableSharedMapIsRefused(t *testing.T) {
	for name, change := range map[string]func(t *testing.T, file string){
		"gone": func(t *testing.T, file string) { test.Must(t, os.Remove(file)) },
		"a link": func(t *testing.T, file string) {
			test.Must(t, os.Rename(file, file+"~"))
			test.Must(t, os.Symlink(file+"~", file))
		},
		"a FIFO": func(t *testing.T, file string) {
			test.Must(t, os.Remove(file))
			test.Must(t, unix.Mkfifo(file, 0o600))
		},
		"empty":     func(t *testing.T, file string) { test.Must(t, os.Truncate(file, 0)) },
		"cut short": func(t *testing.T, file string) { test.Must(t, os.Truncate(file, 5000)) },
		"identity damaged": func(t *testing.T, file string) {
			f, err := os.OpenFile(file, os.O_WRONLY, 0)
			test.Must(t, err)
			_, err = f.WriteAt([]byte{1}, 100)
			test.Must(t, errors.Join(err, f.Close()))
		},
	} {
		t.Run(name, func(t *testing.T) {
			p, dir := paths(t), sharedDir(t)
			killHead(t, p, dir, 200)
			change(t, sharedFiles(t, dir)[0])
			before := readFile(t, p.Map)
			for _, write := range []bool{true, false} {
				l, err := Open(vfs.OS{}, p, OpenParams{Write: write, SharedDir: dir})
				if !errors.Is(err, ErrUnflushed) || !strings.Contains(err.Error(),
					"--drop-unflushed") {
					t.Errorf("write %v: %v, expected ErrUnflushed with advice", write, err)
				}
				if err == nil {
					test.Must(t, l.Abandon())
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

// kernel is what the kernel answers when a layer is opened.
type kernel struct {
	boot, open, instance, syncFS, sync error
	evicted                            bool
	reclaimed                          int64 // bytes of the data, from the first on
}

// fs returns a file system of the kernel.
func (k kernel) fs() vfs.SharedFS {
	return faultfs.OverShared(vfs.OS{}, func(c faultfs.Call) (f faultfs.Fault) {
		switch c.Op {
		case "boot":
			f.Err = k.boot
		case "open shared":
			f.Err = k.open
		case "instance":
			f.Err = k.instance
		case "sync":
			f.Err = k.sync
		case "sync file system":
			f.Err, f.Skip = k.syncFS, true
		case "evicted":
			f.Cold, f.Skip = k.evicted, true
		case "resident":
			f.Cold, f.Skip = k.evicted || c.Off < k.reclaimed, true
		}
		return f
	})
}

// An open that fails once loses nothing: it is refused, and the next open finds everything.
func TestOpenThatFailsOnce(t *testing.T) {
	for name, f := range map[string]kernel{
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
			owned := killHead(t, p, dir, 200)
			for _, write := range []bool{true, false} {
				if l, err := Open(f.fs(), p, OpenParams{Write: write, SharedDir: dir}); !errors.Is(
					err,
					ErrUnflushed) {
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

// A change of owner or mode does not change the content, and a copy with its old times does: only a
// person knows which of the two it was.
func TestMapChangedSince(t *testing.T) {
	p, dir := paths(t), sharedDir(t)
	owned := killHead(t, p, dir, 200)
	test.Must(t, os.Chmod(p.Map, 0o640))
	if _, err := Open(vfs.OS{}, p, OpenParams{Write: true}); !errors.Is(err, ErrUnflushed) ||
		!strings.Contains(err.Error(), "--keep-unflushed") {
		t.Errorf("%v, expected ErrUnflushed with advice", err)
	}
	l := reopen(t, p, OpenParams{Unflushed: DropUnflushed})
	if n := l.Bitmap().Count(); n != 3 {
		t.Errorf("%d blocks, expected 3", n)
	}
	test.Must(t, l.Abandon())
	l = reopen(t, p, OpenParams{Write: true, Unflushed: KeepUnflushed})
	if got := sourceBits(t, l); !maps.Equal(got, owned) {
		t.Errorf("%d blocks, expected %d", len(got), len(owned))
	}
}

// A shared map that contradicts the layer is refused, and the layer loses nothing.
func TestSharedMapContradicts(t *testing.T) {
	p, dir := paths(t), sharedDir(t)
	killHead(t, p, dir, 200)
	f, err := os.OpenFile(sharedFiles(t, dir)[0], os.O_WRONLY, 0)
	test.Must(t, err)
	_, err = f.WriteAt([]byte{1}, MapPageSize+200/8) // block 200 of 200
	test.Must(t, errors.Join(err, f.Close()))
	for _, write := range []bool{true, false} {
		test.ErrorIs(t, test.Err(Open(vfs.OS{}, p, OpenParams{Write: write})), ErrDamaged, "error")
	}
}

// The data alone was replaced, with its old times.
func TestDataChangedSince(t *testing.T) {
	p, dir := paths(t), sharedDir(t)
	owned := killHead(t, p, dir, 200)
	past := time.Now().Add(-time.Hour)
	test.Must(t, os.Chtimes(p.Data, past, past))
	if _, err := Open(vfs.OS{}, p, OpenParams{Write: true}); !errors.Is(err, ErrUnflushed) ||
		!strings.Contains(err.Error(), p.Data) {
		t.Errorf("%v, expected ErrUnflushed of the data", err)
	}
	l := reopen(t, p, OpenParams{Write: true, Unflushed: KeepUnflushed})
	if got := sourceBits(t, l); !maps.Equal(got, owned) {
		t.Errorf("%d blocks, expected %d", len(got), len(owned))
	}
	test.Must(t, l.Close())
	// A store that was copied with its times is served and killed without a write.
	test.Must(t, os.Chtimes(p.Data, past, past))
	test.Must(t, openHead(t, p, dir).Abandon())
	test.Must(t, openHead(t, p, dir).Abandon())
}

// A copy of a store that was not closed does not touch the shared map of the original.
func TestCopyKeepsTheSharedMapOfTheOriginal(t *testing.T) {
	p, dir := paths(t), sharedDir(t)
	owned := killHead(t, p, dir, 200)
	c := paths(t)
	for _, f := range [][2]string{{p.Map, c.Map}, {p.Data, c.Data}} {
		raw := readFile(t, f[0])
		test.Must(t, os.WriteFile(f[1], raw, 0o600))
	}
	l := openHead(t, c, dir)
	if n := l.Bitmap().Count(); n != 3 {
		t.Errorf("%d blocks of the copy, expected 3", n)
	}
	test.Must(t, l.Close())
	test.Must(t, RemoveShared(vfs.OS{}, c))
	if got := sourceBits(t, openHead(t, p, dir)); !maps.Equal(got, owned) {
		t.Errorf("%d blocks, expected %d", len(got), len(owned))
	}
}
