package cow_test

import (
	"bytes"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"cowblk/cow"
	"cowblk/cow/cowtest"
	"cowblk/cow/cowtest/faultfs"
	"cowblk/cow/finding"
	"cowblk/cow/layer"
	"cowblk/cow/vfs"
	"cowblk/internal/test"
)

// threeLayers is a closed stack of base, two sealed layers and a head, each owning some blocks.
func threeLayers(t *testing.T) (*cowtest.Rig, *faultfs.FS) {
	rig, x := newRig(t, cowtest.Shape{Size: 1<<20 + 512, BlockSize: 4096, BaseSize: 1 << 20})
	for i := range 3 {
		write(t, rig.Disk, byte('a'+i), int64(i)*8192, 4096)
		if i < 2 {
			sealed(t, promote(t, rig))
		}
	}
	test.Must(t, rig.Close())
	return rig, x
}

// Every inconsistent stack is refused with the right error, which names the file, and no byte of
// any file changes.
func TestRefusedOpenModifiesNothing(t *testing.T) {
	tests := []struct {
		name     string
		spoil    func(t *testing.T, rig *cowtest.Rig)
		sentinel error
		about    string // file and property
	}{
		{"base changed in size", func(t *testing.T, rig *cowtest.Rig) {
			appendTo(t, rig.Spec.Base.Path, "x")
		}, cow.ErrBaseChanged, "base"},
		{"base changed in time", func(t *testing.T, rig *cowtest.Rig) {
			later := time.Now().Add(time.Hour)
			test.Must(t, os.Chtimes(rig.Spec.Base.Path, later, later))
		}, cow.ErrBaseChanged, "modification time"},
		{"base changed in content", func(t *testing.T, rig *cowtest.Rig) {
			scribble(t, rig.Spec.Base.Path, 1000)
			rig.Spec.Base.Identity = vfs.Identity{}
		}, cow.ErrBaseChanged, "fingerprint"},
		{"base of the layers changed, nothing recorded elsewhere",
			func(t *testing.T, rig *cowtest.Rig) {
				scribble(t, rig.Spec.Base.Path, 1000)
				rig.Spec.Base = &cow.BaseSpec{Path: rig.Spec.Base.Path, Size: rig.Spec.Base.Size}
			}, cow.ErrMismatch, "fingerprint"},
		{"base truncated", func(t *testing.T, rig *cowtest.Rig) {
			test.Must(t, os.Truncate(rig.Spec.Base.Path, 4096))
			rig.Spec.Base.Identity = vfs.Identity{}
		}, cow.ErrBaseChanged, "length"},
		{"no base given", func(t *testing.T, rig *cowtest.Rig) { rig.Spec.Base = nil },
			cow.ErrMismatch, "0000.map"},
		{"a layer left out", func(t *testing.T, rig *cowtest.Rig) {
			rig.Spec.Layers = []layer.Paths{rig.Spec.Layers[0], rig.Spec.Layers[2]}
		}, cow.ErrMismatch, "parent"},
		{"layers in the wrong order", func(t *testing.T, rig *cowtest.Rig) {
			l := rig.Spec.Layers
			rig.Spec.Layers = []layer.Paths{l[1], l[0], l[2]}
		}, cow.ErrMismatch, "parent"},
		{"top is sealed", func(t *testing.T, rig *cowtest.Rig) {
			rig.Spec.Layers = rig.Spec.Layers[:2]
		}, layer.ErrSealed, "0001.map"},
		{"sealed map damaged", func(t *testing.T, rig *cowtest.Rig) {
			scribble(t, rig.Spec.Layers[1].Map, layer.MapOffset)
		}, layer.ErrDamaged, "0001.map"},
		{"header damaged", func(t *testing.T, rig *cowtest.Rig) {
			scribble(t, rig.Spec.Layers[0].Map, 80)
		}, layer.ErrDamaged, "0000.map"},
		{"data truncated", func(t *testing.T, rig *cowtest.Rig) {
			test.Must(t, os.Truncate(rig.Spec.Layers[1].Data, 4096))
		}, layer.ErrDamaged, "0001.data"},
		{"map missing", func(t *testing.T, rig *cowtest.Rig) {
			test.Must(t, os.Remove(rig.Spec.Layers[0].Map))
		}, os.ErrNotExist, "0000.map"},
		{"no layers", func(t *testing.T, rig *cowtest.Rig) { rig.Spec.Layers = nil }, cow.ErrSpec,
			""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			rig, _ := threeLayers(t)
			tt.spoil(t, rig)
			before := files(t, rig.Dir)
			d, err := cow.Open(rig.Spec, cow.Options{})
			if err == nil {
				d.Close()
				t.Fatal("opened")
			}
			var fault *finding.Finding
			var failed *fs.PathError
			about := ""
			if errors.As(err, &fault) {
				about = filepath.Base(fault.File) + ", " + fault.What
			} else if errors.As(err, &failed) {
				about = filepath.Base(failed.Path)
			}
			if !errors.Is(err, tt.sentinel) || !strings.Contains(about, tt.about) {
				t.Errorf("expected %v about %q, found one about %q: %v", tt.sentinel, tt.about,
					about, err)
			}
			if !maps.Equal(before, files(t, rig.Dir)) {
				t.Error("a refused open changed a file")
			}
		})
	}
}

func TestDiskInUseIsRefused(t *testing.T) {
	rig, _ := threeLayers(t)
	test.Must(t, rig.Open())
	before := files(t, rig.Dir)
	test.ErrorIs(t, test.Err(cow.Open(rig.Spec, cow.Options{})), layer.ErrInUse)
	if !maps.Equal(before, files(t, rig.Dir)) {
		t.Error("a refused open changed a file")
	}
}

func appendTo(t *testing.T, name, s string) {
	t.Helper()
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_APPEND, 0)
	if err == nil {
		_, err = f.WriteString(s)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
}

func scribble(t *testing.T, name string, off int64) {
	t.Helper()
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	test.Must(t, err)
	defer f.Close()
	var b [1]byte
	test.Must(t, test.Err(f.ReadAt(b[:], off)))
	b[0] ^= 0x55
	test.Must(t, test.Err(f.WriteAt(b[:], off)))
}

// files returns the content of every file of a directory, by name.
func files(t *testing.T, dir string) map[string]string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	test.Must(t, err)
	m := map[string]string{}
	for _, e := range entries {
		content, err := os.ReadFile(dir + "/" + e.Name())
		test.Must(t, err)
		m[e.Name()] = string(content)
	}
	return m
}

// Base and sealed layers are opened read-only and never change, whatever happens to the disk.
func TestBaseAndSealedLayersNeverChange(t *testing.T) {
	rig, x := threeLayers(t)
	before, err := rig.Hashes(2)
	test.Must(t, err)
	var mu sync.Mutex
	flags := map[string]int{}
	x.OnCall(func(c faultfs.Call) error {
		mu.Lock()
		defer mu.Unlock()
		if c.Op == "open" {
			flags[c.Name] |= c.Flag
		}
		return nil
	})
	test.Must(t, rig.Open())
	for name := range before {
		if f, ok := flags[name]; !ok || f&(os.O_WRONLY|os.O_RDWR) != 0 {
			t.Errorf("%s: expected it opened read-only, found flags %#x (opened: %v)", name, f, ok)
		}
	}
	d := rig.Disk
	write(t, d, 'x', 0, 1<<19)
	write(t, d, 'y', 1<<19+512, 512)
	for _, op := range []cow.Op{cow.OpDiscard, cow.OpWriteZeroes} {
		test.Must(t, do(d, &cow.Request{Op: op,
			Ranges: []cow.Range{{Offset: 512, Length: 1 << 19}}}))
	}
	sealed(t, promote(t, rig))
	write(t, rig.Disk, 'z', 0, 1<<20)
	test.Must(t, rig.Reopen())
	after, err := rig.Hashes(2)
	test.Must(t, err)
	if !maps.Equal(before, after) {
		t.Error("bytes of the base or of a sealed layer have changed")
	}
}

// A crash between swap and seal leaves an unsealed layer below the head: the stack opens with
// everything that was flushed, and the layer gets sealed.
func TestOpenAcceptsAndSealsInterruptedPromotion(t *testing.T) {
	rig, _ := newRig(t, cowtest.Shape{Size: 1 << 20, BlockSize: 4096})
	write(t, rig.Disk, 'a', 0, 8192)
	next, err := rig.NextHead()
	test.Must(t, err)
	test.Must(t, next.Close())
	if err := rig.Reopen(); err != nil { // as if the process had died before the seal
		t.Fatal(err)
	}
	if s := rig.Disk.Layers()[0].State; s != layer.Sealed {
		t.Errorf("lower layer: expected it sealed, found %v", s)
	}
	want(t, rig.Disk, 'a', 0, 8192)
	write(t, rig.Disk, 'b', 0, 512)
	want(t, rig.Disk, 'a', 512, 512)
	tag, err := rig.OpenTag(1)
	test.Must(t, err)
	want(t, tag, 'a', 0, 512)
	test.Must(t, tag.Close())
}

// A disk larger than the layer below it: beyond that layer's size there are zeros.
func TestGrownDisk(t *testing.T) {
	rig, _ := newRig(t, cowtest.Shape{Size: 64<<10 + 512, BlockSize: 4096})
	write(t, rig.Disk, 'a', 64<<10, 512) // the partial last block
	l, err := layer.CreateHead(vfs.OS{}, layer.Paths{Map: rig.Dir + "/big.map",
		Data: rig.Dir + "/big.data"},
		layer.CreateParams{Parent: rig.Disk.Layers()[0].UUID, Size: 1 << 20, BlockSize: 4096})
	test.Must(t, err)
	rig.Spec.Layers = append(rig.Spec.Layers, l.Paths())
	test.Must(t, l.Close())
	test.Must(t, rig.Reopen())
	if rig.Disk.Size() != 1<<20 {
		t.Fatalf("size %d", rig.Disk.Size())
	}
	want(t, rig.Disk, 'a', 64<<10, 512)
	want(t, rig.Disk, 0, 64<<10+512, 1<<20-(64<<10+512))
	write(t, rig.Disk, 'b', 66<<10, 512) // copy-up of the block that was the last one
	want(t, rig.Disk, 'a', 64<<10, 512)
	want(t, rig.Disk, 0, 64<<10+512, 1536)
}

// A read-only disk of a base alone, with an odd length.
func TestBaseAlone(t *testing.T) {
	name := t.TempDir() + "/image"
	content := append(fill('i', 10*512), "tail"...)
	test.Must(t, os.WriteFile(name, content, 0o600))
	d, err := cow.Open(cow.Spec{Base: &cow.BaseSpec{Path: name}, ReadOnly: true}, cow.Options{})
	test.Must(t, err)
	if d.Size() != 10*512 || d.Depth() != 0 || !d.ReadOnly() {
		t.Errorf("size %d, depth %d, read-only %v", d.Size(), d.Depth(), d.ReadOnly())
	}
	got, err := cowtest.ReadAll(d)
	if err != nil || !bytes.Equal(got, content[:10*512]) {
		t.Errorf("content differs: %v", err)
	}
	test.ErrorIs(t, test.Err(d.WriteAt(fill('w', 512), 0)), cow.ErrReadOnly)
	test.Check(t, d.Flush(), "flush")
	// The image is truncated meanwhile: an error, not zeros.
	test.Must(t, os.Truncate(name, 512))
	test.ErrorIs(t, test.Err(d.ReadAt(make([]byte, 1024), 0)), cow.ErrTruncated)
	test.Must(t, d.Close())
	test.ErrorIs(t, d.Close(), cow.ErrClosed, "second close")
}
