package backendtest

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"cowblk/cow"
	"cowblk/cow/layer"
	"cowblk/cow/vfs"
	"cowblk/internal/test"
)

// Size is the size of a Disk in bytes.
const Size = 64 << 20

// Disk is an open disk: an empty head over a base of random bytes.
type Disk struct {
	*cow.Disk
	Dir  string // of its files
	Base []byte // the content of the base
}

// NewDisk makes a disk whose engine uses files for all calls. The test's end closes it.
func NewDisk(t testing.TB, files vfs.FS) *Disk {
	t.Helper()
	return OpenDisk(t, Size, cow.Options{FS: files, LoseUnflushed: true})
}

// OpenDisk makes a disk of size bytes. Without direct I/O if the file system has none.
func OpenDisk(t testing.TB, size int64, o cow.Options) *Disk {
	t.Helper()
	d := &Disk{Dir: t.TempDir(), Base: make([]byte, size)}
	rand.NewChaCha8([32]byte{1}).Read(d.Base)
	base := filepath.Join(d.Dir, "base")
	test.Must(t, os.WriteFile(base, d.Base, 0o600))
	f, err := vfs.OS{}.OpenFile(base, os.O_RDONLY, 0)
	test.Must(t, err)
	print, err := layer.ComputeFingerprint(f, 0, size)
	test.Must(t, err)
	test.Must(t, f.Close())
	paths := layer.Paths{Map: filepath.Join(d.Dir, "map"), Data: filepath.Join(d.Dir, "data")}
	l, err := layer.CreateHead(vfs.OS{}, paths, layer.CreateParams{Size: size, Base: print,
		BaseSize: size})
	test.Must(t, err)
	test.Must(t, l.Close())
	spec := cow.Spec{Base: &cow.BaseSpec{Path: base}, Layers: []layer.Paths{paths}}
	if d.Disk, err = cow.Open(spec, o); err != nil && o.Direct {
		t.Logf("without direct I/O, which the file system of %s refuses: %v", d.Dir, err)
		o.Direct = false
		d.Disk, err = cow.Open(spec, o)
	}
	test.Must(t, err)
	t.Cleanup(func() { test.Must(t, d.Disk.Close()) })
	return d
}
