package layer

import (
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"cowblk/cow/vfs"
)

func livePlace(t testing.TB) LivePlace {
	t.Helper()
	boot, err := vfs.OS{}.Boot()
	must(t, err)
	return LivePlace{FS: vfs.OS{}, Dir: t.TempDir(), Boot: boot}
}

// files counts the live files of a place.
func (p LivePlace) files(t testing.TB) int {
	t.Helper()
	entries, err := os.ReadDir(p.Dir)
	must(t, err)
	return len(entries)
}

// dies makes a head with some blocks flushed and others not, whose process has died.
func dies(t *testing.T, p Paths, place LivePlace, blocks uint64) (owned map[uint64]bool) {
	t.Helper()
	l := newHead(t, p, CreateParams{Size: int64(blocks) * DefaultBlockSize})
	must(t, l.Survive(place))
	write(t, l, 1, 3)
	must(t, l.flush())
	write(t, l, 2, 70)
	write(t, l, blocks-1, 1)
	owned = sourceBits(t, l)
	must(t, l.Abandon())
	return owned
}

// The next process knows every block of the one that died, and makes it durable.
func TestSurvives(t *testing.T) {
	for _, blocks := range []uint64{100, blocksPerPage, 3*blocksPerPage + 7} {
		p, place := paths(t), livePlace(t)
		owned := dies(t, p, place, blocks)
		for range 3 { // dies again before it has done anything
			l := reopen(t, p, OpenParams{Write: true})
			if n := l.Bitmap().Count(); n != 3 {
				t.Fatalf("the map file has %d blocks, expected the 3 that were flushed", n)
			}
			must(t, l.Survive(place))
			if got := sourceBits(t, l); !maps.Equal(got, owned) || l.Bitmap().Count() != uint64(len(owned)) {
				t.Fatalf("%d blocks, count %d; expected %d", len(got), l.Bitmap().Count(), len(owned))
			}
			must(t, l.Abandon())
		}
		l := reopen(t, p, OpenParams{Write: true})
		must(t, l.Survive(place))
		must(t, l.Close())
		if place.files(t) != 0 {
			t.Error("a head that was closed has a live file")
		}
		l = reopen(t, p, OpenParams{})
		if got := sourceBits(t, l); !maps.Equal(got, owned) {
			t.Errorf("%d blocks are durable, expected %d", len(got), len(owned))
		}
	}
}

// What was handed over and not written to the map yet is in the live file, too.
func TestSurvivesWithWhatWasCarried(t *testing.T) {
	p, place := paths(t), livePlace(t)
	l := newHead(t, p, CreateParams{Size: 100 * DefaultBlockSize})
	write(t, l, 5, 2)
	pages, err := l.Leave()
	must(t, err)
	l = reopen(t, p, OpenParams{Write: true, Carried: pages})
	must(t, l.Survive(place))
	must(t, l.Abandon())
	l = reopen(t, p, OpenParams{Write: true})
	must(t, l.Survive(place))
	if !l.Bitmap().Test(5) || !l.Bitmap().Test(6) || len(l.Bitmap().TakeDirty(nil)) != 1 {
		t.Error("what was carried is lost, or not dirty")
	}
}

// A former head that is still to be sealed: a reader knows all its blocks without a change to any file, and sealing
// makes them durable.
func TestRecalledAndSealed(t *testing.T) {
	p, place := paths(t), livePlace(t)
	owned := dies(t, p, place, 200)
	l := reopen(t, p, OpenParams{})
	must(t, l.Recall(place))
	if got := sourceBits(t, l); !maps.Equal(got, owned) {
		t.Errorf("%d blocks are recalled, expected %d", len(got), len(owned))
	}
	must(t, l.Close())
	l = reopen(t, p, OpenParams{Write: true})
	must(t, l.Survive(place))
	must(t, l.Seal(time.Now()))
	must(t, l.Close())
	if place.files(t) != 0 {
		t.Error("a sealed layer has a live file")
	}
	l = reopen(t, p, OpenParams{})
	if got := sourceBits(t, l); !maps.Equal(got, owned) {
		t.Errorf("%d blocks are sealed, expected %d", len(got), len(owned))
	}
	must(t, l.Recall(livePlace(t))) // none there
}

// A live file that is not of this run of the kernel, or a copy, or cut short, says nothing: what was flushed counts.
func TestLiveFileNotBelieved(t *testing.T) {
	for name, change := range map[string]func(t *testing.T, place *LivePlace, file string){
		"another run": func(t *testing.T, place *LivePlace, file string) { place.Boot = "00000000-0000-4000-8000-000000000000" },
		"copied": func(t *testing.T, place *LivePlace, file string) {
			p, err := os.ReadFile(file)
			must(t, err)
			must(t, os.Rename(file, file+".kept")) // its inode is not free
			must(t, os.WriteFile(file, p, 0o600))
		},
		"header damaged": func(t *testing.T, place *LivePlace, file string) {
			f, err := os.OpenFile(file, os.O_WRONLY, 0)
			must(t, err)
			_, err = f.WriteAt([]byte{1}, 100)
			must(t, errors.Join(err, f.Close()))
		},
		"cut short": func(t *testing.T, place *LivePlace, file string) { must(t, os.Truncate(file, 5000)) },
		"empty":     func(t *testing.T, place *LivePlace, file string) { must(t, os.Truncate(file, 0)) },
		"gone":      func(t *testing.T, place *LivePlace, file string) { must(t, os.Remove(file)) },
	} {
		t.Run(name, func(t *testing.T) {
			p, place := paths(t), livePlace(t)
			dies(t, p, place, 200)
			h, err := ReadHeader(vfs.OS{}, p.Map)
			must(t, err)
			change(t, &place, place.path(h.UUID))
			l := reopen(t, p, OpenParams{Write: true})
			must(t, l.Survive(place))
			if n := l.Bitmap().Count(); n != 3 {
				t.Errorf("%d blocks, expected 3", n)
			}
			write(t, l, 50, 1)
			must(t, l.Abandon())
			l = reopen(t, p, OpenParams{Write: true})
			must(t, l.Survive(place))
			if n := l.Bitmap().Count(); n != 4 {
				t.Errorf("%d blocks after another death, expected 4", n)
			}
		})
	}
}

// A live file that contradicts the layer is refused, and nothing is lost of the layer.
func TestLiveFileContradicts(t *testing.T) {
	p, place := paths(t), livePlace(t)
	dies(t, p, place, 200)
	h, err := ReadHeader(vfs.OS{}, p.Map)
	must(t, err)
	f, err := os.OpenFile(place.path(h.UUID), os.O_WRONLY, 0)
	must(t, err)
	_, err = f.WriteAt([]byte{1}, MapOffset+200/8) // block 200 of 200
	must(t, errors.Join(err, f.Close()))
	for _, write := range []bool{true, false} {
		l := reopen(t, p, OpenParams{Write: write})
		take := l.Recall
		if write {
			take = l.Survive
		}
		if err := take(place); !errors.Is(err, ErrDamaged) {
			t.Errorf("%v, expected ErrDamaged", err)
		}
		if n := l.Bitmap().Count(); n != 3 {
			t.Errorf("%d blocks, expected 3", n)
		}
		must(t, l.Abandon())
	}
}

// After a failed sync nobody may take for written what the kernel may have dropped.
func TestNoLiveFileAfterAFailedSync(t *testing.T) {
	p, place := paths(t), livePlace(t)
	l := newHead(t, p, CreateParams{Size: 100 * DefaultBlockSize})
	must(t, l.Survive(place))
	write(t, l, 1, 1)
	data := l.data
	l.data = failingSync{data}
	if err := l.SyncData(); !errors.Is(err, syscall.EIO) {
		t.Fatal(err)
	}
	if place.files(t) != 0 {
		t.Error("the live file is still there")
	}
	must(t, l.Abandon())
}

// What the kernel may hold of data that a failed sync has lost is forgotten before
// anybody reads it; not so after a mere death, or a close.
func TestCacheIsDroppedAfterAFailedSync(t *testing.T) {
	for name, c := range map[string]struct {
		end   func(l *Layer) error
		write bool
		drops int
	}{
		"failed":           {func(l *Layer) error { return errors.Join(l.dropLive(), l.Abandon()) }, true, 1},
		"failed, for read": {func(l *Layer) error { return errors.Join(l.dropLive(), l.Abandon()) }, false, 1},
		"died":             {(*Layer).Abandon, true, 0},
		"died, for read":   {(*Layer).Abandon, false, 0},
		"closed":           {(*Layer).Close, true, 0},
	} {
		t.Run(name, func(t *testing.T) {
			p, place := paths(t), livePlace(t)
			l := newHead(t, p, CreateParams{Size: 100 * DefaultBlockSize})
			must(t, l.Survive(place))
			write(t, l, 1, 1)
			must(t, c.end(l))
			l = reopen(t, p, OpenParams{Write: c.write})
			data := &dropCounter{File: l.data}
			l.data = data
			if c.write {
				must(t, l.Survive(place))
			} else {
				must(t, l.Recall(place))
			}
			if data.drops != c.drops {
				t.Errorf("the cache was dropped %d times, expected %d", data.drops, c.drops)
			}
			must(t, l.Abandon())
		})
	}
}

type dropCounter struct {
	vfs.File
	drops int
}

func (d *dropCounter) DropCache() error {
	d.drops++
	return d.File.DropCache()
}

type failingSync struct{ vfs.File }

func (failingSync) Datasync() error { return syscall.EIO }

// Without a place for it the head works as ever.
func TestNoPlaceForALiveFile(t *testing.T) {
	p, place := paths(t), livePlace(t)
	place.Dir = filepath.Join(place.Dir, "missing")
	l := newHead(t, p, CreateParams{Size: 100 * DefaultBlockSize})
	if err := l.Survive(place); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v, expected ErrNotExist", err)
	}
	write(t, l, 1, 1)
	must(t, l.Close())
}

func TestTidy(t *testing.T) {
	p, place := paths(t), livePlace(t)
	l := newHead(t, p, CreateParams{Size: 100 * DefaultBlockSize})
	must(t, l.Survive(place))
	for _, name := range []string{"live-00000000-0000-4000-8000-000000000000", "live-", "disk.json"} {
		must(t, os.WriteFile(filepath.Join(place.Dir, name), nil, 0o600))
	}
	must(t, place.Tidy(nil))
	must(t, l.Close())
	if _, err := os.Stat(filepath.Join(place.Dir, "disk.json")); err != nil || place.files(t) != 1 {
		t.Errorf("%d files are left; %v", place.files(t), err)
	}
}
