//go:build integration

package reader

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cowblk/cow"
	"cowblk/cow/imagefile"
	"cowblk/cow/layer"
	"cowblk/cow/store"
	"cowblk/cow/vfs"
	"cowblk/internal/test"
)

// world is a store that a test fills, with the names of everything that has content.
type world struct {
	t     *testing.T
	dir   string // directory of the files beside the store
	store *store.Store
	rng   *rand.Rand
}

func newWorld(t *testing.T, seed uint64) *world {
	t.Helper()
	dir := t.TempDir()
	return &world{t: t, dir: dir, store: openStore(t, filepath.Join(dir, "store")),
		rng: rand.New(rand.NewPCG(seed, 1))}
}

func openStore(t *testing.T, dir string) *store.Store {
	t.Helper()
	s, err := store.Open(dir, store.Options{})
	test.Must(t, err)
	return s
}

// file makes a file of n random bytes and returns its path.
func (w *world) file(name string, n int) string {
	w.t.Helper()
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(w.rng.Uint32())
	}
	path := filepath.Join(w.dir, name)
	test.Must(w.t, os.WriteFile(path, p, 0o600))
	return path
}

// blank makes a file of n zeros and returns its path.
func (w *world) blank(name string, n int64) string {
	w.t.Helper()
	path := filepath.Join(w.dir, name)
	test.Must(w.t, os.WriteFile(path, nil, 0o600))
	test.Must(w.t, os.Truncate(path, n))
	return path
}

func (w *world) create(name string, o store.CreateOptions) {
	w.t.Helper()
	test.Must(w.t, test.Err(w.store.Create(context.Background(), name, o)))
}

// scribble writes, discards and zeroes random ranges of an open disk.
func (w *world) scribble(d *cow.Disk, n int) {
	w.t.Helper()
	ch, err := d.NewChannel()
	test.Must(w.t, err)
	defer ch.Close()
	sectors := d.Size() / 512
	for range n {
		length := 1 + w.rng.Int64N(min(64, sectors))
		off := w.rng.Int64N(sectors - length + 1)
		switch w.rng.IntN(4) {
		case 0:
			do(w.t, ch, &cow.Request{Op: cow.OpDiscard,
				Ranges: []cow.Range{{Offset: off * 512, Length: length * 512}}})
		case 1:
			do(w.t, ch, &cow.Request{Op: cow.OpWriteZeroes,
				Ranges: []cow.Range{{Offset: off * 512, Length: length * 512}}})
		default:
			p := make([]byte, length*512)
			for i := range p {
				p[i] = byte(w.rng.Uint32())
			}
			test.Must(w.t, test.Err(d.WriteAt(p, off*512)))
		}
	}
}

func do(t *testing.T, ch *cow.Channel, r *cow.Request) {
	t.Helper()
	ch.Submit(r)
	for {
		if done := ch.Completed(nil); len(done) == 1 {
			test.Must(t, done[0].Err)
			return
		}
		fds := []unix.PollFd{{Fd: int32(ch.FD()), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, -1); err != nil && err != unix.EINTR {
			t.Fatal(err)
		}
	}
}

// change opens a stopped disk, scribbles on it and closes it in order.
func (w *world) change(name string, n int) {
	w.t.Helper()
	o, err := w.store.OpenDisk(context.Background(), name, store.OpenOptions{})
	test.Must(w.t, err)
	w.scribble(o.Disk, n)
	test.Must(w.t, o.Close())
}

func (w *world) promote(tag string, names ...string) {
	w.t.Helper()
	_, err := w.store.Promote(context.Background(), names, tag)
	test.Must(w.t, err)
}

// paths returns the files of a layer according to the manifest.
func (w *world) paths(l *store.Layer) layer.Paths {
	if filepath.IsAbs(l.Map) {
		return layer.Paths{Map: l.Map, Data: l.Data, DataOffset: l.DataOffset,
			Checksums: filepath.Join(w.store.Dir(), "layers", l.UUID.String(), "sums")}
	}
	return layer.Paths{Map: filepath.Join(w.store.Dir(), l.Map), Data: filepath.Join(w.store.Dir(),
		l.Data), DataOffset: l.DataOffset}
}

// addSums adds data checksums to all sealed layers of a disk.
func (w *world) addSums(name string) {
	w.t.Helper()
	m, err := w.store.Disk(name)
	test.Must(w.t, err)
	for _, l := range m.Sealed() {
		opened, err := layer.Open(vfs.OS{}, w.paths(&l), layer.OpenParams{})
		test.Must(w.t, err)
		test.Must(w.t, opened.AddChecksums(nil))
		test.Must(w.t, opened.Close())
	}
}

// unsealed leaves an unsealed layer below the head of a disk, as a crash in a promotion does.
func (w *world) unsealed(name string) {
	w.t.Helper()
	m, err := w.store.Disk(name)
	test.Must(w.t, err)
	p, err := w.store.PreparePromotion(context.Background(), []*store.Manifest{m}, "unsealed")
	test.Must(w.t, err)
	test.Must(w.t, p.Commit())
	for _, h := range p.Heads() {
		test.Must(w.t, h.Close())
	}
	p.Close(true)
}

// pending leaves a committed change of two disks that has been applied to one of them.
func (w *world) pending(tag, one, two string) {
	w.t.Helper()
	disk := func(name string) string {
		return filepath.Join(w.store.Dir(), "disks", name, "disk.json")
	}
	before, err := os.ReadFile(disk(two))
	test.Must(w.t, err)
	var record struct {
		From []string          `json:"from"`
		To   []json.RawMessage `json:"to"`
	}
	for _, name := range []string{one, two} {
		m, err := w.store.Disk(name)
		test.Must(w.t, err)
		record.From = append(record.From, m.Head().UUID.String())
	}
	w.promote(tag, one, two)
	for _, name := range []string{one, two} {
		text, err := os.ReadFile(disk(name))
		test.Must(w.t, err)
		record.To = append(record.To, text)
	}
	work := filepath.Join(w.store.Dir(), "tmp", "6ba7b810-9dad-11d1-80b4-00c04fd430c8")
	test.Must(w.t, os.MkdirAll(work, 0o700))
	text, err := json.Marshal(record)
	test.Must(w.t, err)
	test.Must(w.t, os.WriteFile(filepath.Join(work, "lock"), nil, 0o600))
	test.Must(w.t, os.WriteFile(filepath.Join(work, "commit.json"), text, 0o600))
	test.Must(w.t, os.WriteFile(disk(two), before, 0o644))
}

// stores returns the kinds of store; each function fills a world.
func stores() map[string]func(w *world) {
	all := map[string]func(w *world){
		"images, tags, clones, larger clones": func(w *world) {
			ctx := context.Background()
			_, err := w.store.Import(ctx, w.file("golden.raw", 300*512), "golden",
				store.ImportOptions{Format: imagefile.Raw})
			test.Must(w.t, err)
			w.create("vm", store.CreateOptions{From: "golden", Size: 413 * 512})
			w.change("vm", 20)
			w.promote("one", "vm")
			w.change("vm", 10)
			w.promote("two", "vm")
			w.change("vm", 5)
			w.create("clone", store.CreateOptions{From: "vm@one"})
			w.change("clone", 10)
			w.create("larger", store.CreateOptions{From: "vm@two", Size: 1001 * 512})
			w.change("larger", 10)
			w.promote("three", "larger")
			w.create("largest", store.CreateOptions{From: "larger@three", Size: 2222 * 512})
			w.change("largest", 3)
			w.addSums("largest")
		},
		"base in place": func(w *world) {
			w.create("vm", store.CreateOptions{Base: w.file("base", 999*512), Size: 1500 * 512})
			w.change("vm", 20)
			w.promote("one", "vm")
		},
		"tables": func(w *world) {
			base := w.file("base", 2000*512)
			for i, name := range []string{"a", "b"} {
				maps, data := [2]string{}, [2]string{}
				for k := range 2 {
					maps[k], data[k] = w.blank(fmt.Sprint(name, "map", k), 16384),
						w.blank(fmt.Sprint(name, "data", k), 0)
				}
				w.create(name,
					store.CreateOptions{Table: fmt.Sprintf("%d 1001 cow %s %d %s %s 3 %s %s 2000",
						i, base, 7*(i+1), maps[0], data[0], maps[1], data[1])})
				w.change(name, 20)
			}
			w.promote("one", "a")
			w.change("a", 5)
			w.addSums("a")
			w.create("clone", store.CreateOptions{From: "a@one"})
			w.change("clone", 5)
		},
		"lower heads": func(w *world) {
			w.create("vm", store.CreateOptions{Size: 500 * 512})
			w.change("vm", 10)
			w.unsealed("vm")
		},
		"pending change": func(w *world) {
			for _, name := range []string{"one", "two"} {
				w.create(name, store.CreateOptions{Size: 500 * 512})
				w.change(name, 10)
			}
			w.pending("tag", "one", "two")
		},
		"may-ignore": func(w *world) {
			w.create("vm", store.CreateOptions{Size: 500 * 512})
			w.change("vm", 10)
			path := filepath.Join(w.store.Dir(), "disks", "vm", "disk.json")
			text, err := os.ReadFile(path)
			test.Must(w.t, err)
			test.Must(w.t, os.WriteFile(path,
				append([]byte(`{"may-ignore": {"a": [1, "b", null]},`), text[1:]...), 0o644))
		},
	}
	for size := 512; size <= 65536; size *= 2 {
		all[fmt.Sprintf("blocks of %d", size)] = func(w *world) {
			w.create("vm", store.CreateOptions{Size: 777 * 512, BlockSize: size})
			w.change("vm", 15)
			w.promote("one", "vm")
			w.change("vm", 5)
			w.promote("two", "vm")
			w.change("vm", 5)
			w.addSums("vm")
		}
	}
	return all
}

// refs returns all disks and tags of a store.
func (w *world) refs() (refs []string) {
	w.t.Helper()
	disks, err := w.store.Disks()
	test.Must(w.t, err)
	for _, m := range disks {
		refs = append(refs, m.Name)
		for _, l := range m.Sealed() {
			if l.Tag != "" {
				refs = append(refs, m.Name+"@"+l.Tag)
			}
		}
	}
	return refs
}

// waitLimit bounds a program that the test has started.
const waitLimit = 5 * time.Minute
