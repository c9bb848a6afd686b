package cowtest

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"cowblk/cow"
	"cowblk/cow/layer"
	"cowblk/cow/vfs"
)

// Shape describes a Rig's disk. All sizes are in bytes.
type Shape struct {
	Size          int64
	BlockSize     uint32
	BaseSize      int64 // 0: no base
	BaseOffset    int64 // of the base in its file, with other content around it
	ChecksumFiles bool  // sealed layers have their data checksums in files of their own
}

// Rig is a stack in a directory, usually with an open disk.
type Rig struct {
	Shape Shape
	Dir   string
	FS    vfs.FS
	Spec  cow.Spec
	Disk  *cow.Disk // nil while closed
	// Direct opens the disk with direct I/O, from the next Open on.
	Direct bool
	// OnOpen, if not nil, is called with each disk that Open has opened.
	OnOpen func(*cow.Disk)
}

// NewRig makes a base stamped with BaseContent and one head, and opens the disk.
func NewRig(dir string, fsys vfs.FS, s Shape) (*Rig, error) {
	r := &Rig{Shape: s, Dir: dir, FS: fsys}
	var params layer.CreateParams
	if s.BaseSize > 0 {
		if err := r.makeBase(&params); err != nil {
			return nil, err
		}
	}
	l, err := r.create(params)
	if err != nil {
		return nil, err
	}
	if err := l.Close(); err != nil {
		return nil, err
	}
	return r, r.Open()
}

func (r *Rig) makeBase(params *layer.CreateParams) error {
	s := r.Shape
	name := filepath.Join(r.Dir, "base")
	sectors := (s.BaseSize + SectorSize - 1) / SectorSize
	content := make([]byte, sectors*SectorSize)
	Stamp(content, 0, BaseContent)
	file := make([]byte, s.BaseOffset+s.BaseSize+1000)
	for i := range file {
		file[i] = 0xa5
	}
	copy(file[s.BaseOffset:], content[:s.BaseSize])
	if err := os.WriteFile(name, file, 0o600); err != nil {
		return err
	}
	f, err := r.FS.OpenFile(name, os.O_RDONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	sum, err := layer.ComputeFingerprint(f, s.BaseOffset, s.BaseSize)
	if err != nil {
		return err
	}
	id, err := f.Identity()
	if err != nil {
		return err
	}
	params.Base, params.BaseSize = sum, s.BaseSize
	r.Spec.Base = &cow.BaseSpec{Path: name, Offset: s.BaseOffset, Size: s.BaseSize,
		Fingerprint: sum, Identity: id}
	return nil
}

// create makes the next head's files and adds them to the Spec.
func (r *Rig) create(params layer.CreateParams) (*layer.Layer, error) {
	params.Size, params.BlockSize = r.Shape.Size, r.Shape.BlockSize
	n := len(r.Spec.Layers)
	p := layer.Paths{
		Map:  filepath.Join(r.Dir, fmt.Sprintf("%04d.map", n)),
		Data: filepath.Join(r.Dir, fmt.Sprintf("%04d.data", n)),
	}
	if r.Shape.ChecksumFiles {
		p.Checksums = filepath.Join(r.Dir, fmt.Sprintf("%04d", n), "sums")
	}
	l, err := layer.CreateHead(r.FS, p, params)
	if err != nil {
		return nil, err
	}
	r.Spec.Layers = append(r.Spec.Layers, p)
	return l, nil
}

// NextHead makes a new head for the disk's present one, as Promote needs it.
func (r *Rig) NextHead() (*layer.Layer, error) {
	layers := r.Disk.Layers()
	below := layers[len(layers)-1]
	return r.create(layer.CreateParams{Parent: below.UUID, Base: below.Base,
		BaseSize: below.BaseSize})
}

// Promote puts a new head on top of the running disk.
func (r *Rig) Promote() (*cow.Promotion, error) {
	next, err := r.NextHead()
	if err != nil {
		return nil, err
	}
	return r.Disk.Promote(next)
}

// Open opens the disk of the Spec.
func (r *Rig) Open() (err error) {
	r.Disk, err = cow.Open(r.Spec, cow.Options{FS: r.FS, Direct: r.Direct, LoseUnflushed: true})
	if err == nil && r.OnOpen != nil {
		r.OnOpen(r.Disk)
	}
	return err
}

// Close closes the disk if it is open.
func (r *Rig) Close() error {
	if r.Disk == nil {
		return nil
	}
	d := r.Disk
	r.Disk = nil
	return d.Close()
}

// Reopen closes and opens the disk.
func (r *Rig) Reopen() error {
	return errors.Join(r.Close(), r.Open())
}

// OpenTag opens, read-only, the stack of the given number of lowest layers.
func (r *Rig) OpenTag(layers int) (*cow.Disk, error) {
	s := r.Spec
	s.ReadOnly, s.Layers = true, s.Layers[:layers]
	return cow.Open(s, cow.Options{FS: r.FS, LoseUnflushed: true})
}

// ReadAll reads the whole disk.
func ReadAll(d *cow.Disk) ([]byte, error) {
	p := make([]byte, d.Size())
	if _, err := d.ReadAt(p, 0); err != nil && err != io.EOF {
		return nil, err
	}
	return p, nil
}

// Hashes returns the SHA-256 of the base and of the first n layers' files.
func (r *Rig) Hashes(n int) (map[string][sha256.Size]byte, error) {
	names := []string{}
	if r.Spec.Base != nil {
		names = append(names, r.Spec.Base.Path)
	}
	for _, p := range r.Spec.Layers[:n] {
		names = append(names, p.Map, p.Data)
	}
	sums := map[string][sha256.Size]byte{}
	for _, name := range names {
		content, err := os.ReadFile(name)
		if err != nil {
			return nil, err
		}
		sums[name] = sha256.Sum256(content)
	}
	return sums, nil
}
