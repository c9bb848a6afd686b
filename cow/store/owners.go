package store

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/google/uuid"

	"cowblk/cow/finding"
	"cowblk/cow/layer"
	"cowblk/cow/vfs"
)

// partKind says what a disk uses a range of a file for.
type partKind string

const (
	partMap  partKind = "map"
	partData partKind = "data"
	partBase partKind = "base"
)

// part is a range of a file or device that a disk or an image uses.
type part struct {
	owner string // "disk NAME", "image NAME", or "the table"
	kind  partKind
	layer uuid.UUID // zero: a base, or a layer still to be created
	head  bool      // part of a writable layer
	path  string
	off   int64
	n     int64 // < 0: to the end of the file

	extents []vfs.Extent // on the inode and on the devices below it; see locate
}

func (p *part) String() string {
	if p.kind == partBase {
		return fmt.Sprintf("base %s of %s", p.path, p.owner)
	}
	return fmt.Sprintf("%s %s of %s", p.kind, p.path, p.owner)
}

// locate finds the extents of a part. A missing file has none.
func (s *Store) locate(p *part) error {
	var err error
	p.extents, err = vfs.Extents(s.fs, p.path, p.off, p.n)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// overlap returns the paths, as either part knows them, of a file in which both have common bytes.
func (p *part) overlap(o *part) (mine, other string, ok bool) {
	for _, a := range p.extents {
		for _, b := range o.extents {
			if a.Overlaps(b) {
				return a.Path, b.Path, true
			}
		}
	}
	return "", "", false
}

// conflicts is overlap for a new disk. It also refuses map or data in a regular file that is a
// base: any write to the file changes the time by which a base is checked.
func (p *part) conflicts(o *part) (mine, other string, ok bool) {
	if mine, other, ok = p.overlap(o); ok || (p.kind == partBase) == (o.kind == partBase) {
		return mine, other, ok
	}
	for _, a := range p.extents {
		for _, b := range o.extents {
			if a.Inode == b.Inode && !a.Block {
				return a.Path, b.Path, true
			}
		}
	}
	return "", "", false
}

// compatible reports whether two parts may share bytes: both are bases, or the same file of a
// sealed layer.
func (p *part) compatible(o *part) bool {
	if p.kind == partBase && o.kind == partBase {
		return true
	}
	return p.kind == o.kind && p.layer != uuid.Nil && p.layer == o.layer && !p.head && !o.head
}

// partsOf returns the files of a disk without its image.
func (s *Store) partsOf(m *Manifest) []*part {
	owner := fmt.Sprintf("disk %q", m.Name)
	var parts []*part
	if m.Base != nil && m.Base.Path != "" {
		parts = append(parts, &part{owner: owner, kind: partBase, path: m.Base.Path,
			off: m.Base.Offset, n: m.Base.Size})
	}
	mapSize := layer.Header{Size: m.Size, BlockSize: uint32(m.BlockSize)}.MapSize()
	for i := range m.Layers {
		l := &m.Layers[i]
		p, head := s.paths(l), i == len(m.Layers)-1
		// A lower layer may be smaller than the disk, and the data of another may follow.
		size := m.Size
		if !head && !l.inStore() {
			if h, err := layer.ReadHeader(s.fs, p.Map); err == nil && h.UUID == l.UUID {
				size = h.Size
			}
		}
		parts = append(parts,
			&part{owner: owner, kind: partMap, layer: l.UUID, head: head, path: p.Map, n: mapSize},
			&part{owner: owner, kind: partData, layer: l.UUID, head: head, path: p.Data,
				off: p.DataOffset, n: size})
	}
	return parts
}

// partsOfImages returns the data files of images, which are never written.
func (s *Store) partsOfImages(names []string) (parts []*part) {
	for _, name := range names {
		parts = append(parts, &part{owner: fmt.Sprintf("image %q", name), kind: partBase,
			path: s.ImageData(name), n: -1})
	}
	return parts
}

// refuseOverlap refuses parts of one disk that share bytes. Each file must exist.
func (s *Store) refuseOverlap(parts []*part) error {
	for i, p := range parts {
		var err error
		if p.extents, err = vfs.Extents(s.fs, p.path, p.off, p.n); err != nil {
			return fmt.Errorf("%s: %w", p, err)
		}
		for _, o := range parts[:i] {
			if mine, other, ok := p.conflicts(o); ok {
				return finding.Invalidf(
					"%s and %s are the same bytes of one file, or one of them is a base in a regular file%s: expected each in a place of its own", o, p, sharedFileText(o, other, p, mine))
			}
		}
	}
	return nil
}

// refuseUsed refuses parts of a new disk, or of a file that is served raw, that share bytes with
// another disk or an image, unless both only read them. A disk with an unreadable manifest might
// use any file: an error unless lenient: for parts that are only read, because the locks of an open
// disk prevent writes to them, and for a file that is served raw. The caller holds the store's lock
// for a new disk.
func (s *Store) refuseUsed(parts []*part, lenient bool) error {
	for _, p := range parts {
		if err := s.locate(p); err != nil {
			return fmt.Errorf("%s: %w", p, err)
		}
	}
	disks, err := s.Disks()
	if err != nil && !lenient {
		return fmt.Errorf("cannot determine which disks use the files: %w", err)
	}
	images, err := s.names(imagesDir)
	if err != nil {
		return err
	}
	others := s.partsOfImages(images)
	for _, m := range disks {
		others = append(others, s.partsOf(m)...)
	}
	for _, o := range others {
		if err := s.locate(o); err != nil {
			return fmt.Errorf("%s: %w", o, err)
		}
		for _, p := range parts {
			mine, other, ok := p.conflicts(o)
			if !ok || p.compatible(o) && !s.contains(o.path) {
				continue
			}
			return fmt.Errorf("%s is %w: the same bytes, or bytes of the same file, are %s%s\n%s",
				p, ErrInUse, o, sharedFileText(p, mine, o, other), sharedAdvice(o))
		}
	}
	return nil
}

// sharedFileText names the file that two parts share if neither path does.
func sharedFileText(a *part, pathOfA string, b *part, pathOfB string) string {
	if pathOfA == a.path && pathOfB == b.path {
		return ""
	}
	if pathOfA == "" || pathOfA == a.path {
		pathOfA = pathOfB
	}
	if pathOfA == "" {
		return ", a device below"
	}
	return ", in " + pathOfA
}

func sharedAdvice(o *part) string {
	var name string
	if _, err := fmt.Sscanf(o.owner, "image %q", &name); err == nil {
		return "make the disk on the image: --from " + name
	}
	if _, err := fmt.Sscanf(o.owner, "disk %q", &name); err == nil && o.kind != partBase {
		return fmt.Sprintf("name another file, or make the disk on what %s holds: cowblk promote %s --tag TAG, then --from %s@TAG", o.owner, name, name)
	}
	return "name another file"
}
