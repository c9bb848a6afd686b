package layer

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/google/uuid"

	"cowblk/cow/finding"
	"cowblk/cow/vfs"
)

// OpenParams say how to open a layer. The zero value opens any layer read-only.
type OpenParams struct {
	// Write opens a head for writing, under an exclusive lock. Otherwise the layer, sealed or a
	// head, is opened read-only under a shared lock.
	Write  bool
	Expect Expect
	// SharedDir is a directory in memory (vfs.SharedFS) for the shared map of a head that is opened
	// for writing. Empty: the head gets none, and Bitmap.Add reports each bit as not shared. A
	// shared map that a process has left is used in any case.
	SharedDir string
	// Unflushed says what to do about unflushed writes of a process that died.
	Unflushed Unflushed
}

// Unflushed is what an open does about acknowledged, unflushed writes of a process that died.
type Unflushed uint8

// Policies for unflushed writes.
const (
	// recover them; if they are proven lost, as after a power cut; if unknown, refuse
	RecoverUnflushed Unflushed = iota
	// recover them also if the map was changed since by an unknown program
	KeepUnflushed
	DropUnflushed // as after a power cut
)

// Expect is what the caller knows about the layer; a layer that differs is refused with
// ErrMismatch, ErrSealed or ErrNotSealed. Zero values are not checked.
type Expect struct {
	State     State
	UUID      uuid.UUID
	Parent    *uuid.UUID // nil: not checked; the zero UUID: lowest layer
	Size      int64      // bytes
	BlockSize uint32     // bytes
	Base      *Fingerprint
	BaseSize  *int64 // bytes of the base that belong to the stack; nil: not checked
}

// Open opens a layer. It checks the header, the caller's expectations, the length of both files,
// and the whole map: its checksum if the layer is sealed, that no bit lies beyond the last block,
// and that the data file reaches the last owned block. It also checks the header of a checksum
// file. Opening for writing clears the clean mark once all checks have passed; a refused open
// modifies nothing.
func Open(fsys vfs.FS, p Paths, o OpenParams) (*Layer, error) {
	l := newLayer(fsys, p, o.Write)
	if err := l.open(o); err != nil {
		_ = l.Abandon()
		return nil, fmt.Errorf("open layer: %w", err)
	}
	return l, nil
}

func (l *Layer) open(o OpenParams) error {
	flags := os.O_RDONLY
	if o.Write {
		flags = os.O_RDWR
	}
	var err error
	if l.mapf, err = l.fs.OpenFile(l.paths.Map, flags, 0); err != nil {
		return err
	}
	if err := lockMap(l.mapf, o.Write); err != nil {
		return err
	}
	if l.header, err = readHeader(l.mapf, &l.sector); err != nil {
		return err
	}
	if err := l.checkExpected(o); err != nil {
		return err
	}
	if l.data, err = l.fs.OpenFile(l.paths.Data, flags, 0); err != nil {
		return err
	}
	if err := l.lockRanges(o.Write); err != nil {
		return err
	}
	if err := l.checkMap(); err != nil {
		return withPath(l.paths.Map, err)
	}
	if l.table, err = findChecksumTable(l.fs, l.paths, &l.header, l.mapf); err != nil {
		return err
	}
	if l.unclean = l.header.State != Sealed && !l.header.Clean; l.unclean {
		if err := l.recoverUnflushed(o); err != nil {
			return withPath(l.paths.Map, err)
		}
	}
	if !o.Write {
		return nil
	}
	if err := l.data.AdviseRandom(); err != nil {
		return err
	}
	if err := l.growData(); err != nil {
		return err
	}
	return l.markOpen(o.SharedDir)
}

// ReadHeader reads and checks the header of a map alone, without a lock and without a check of
// bitmap or data. It is for listings.
func ReadHeader(fsys vfs.FS, name string) (_ Header, err error) {
	defer addContext(&err, "read layer header")
	f, err := fsys.OpenFile(name, os.O_RDONLY, 0)
	if err != nil {
		return Header{}, err
	}
	defer f.Close()
	var sector [SectorSize]byte
	return readHeader(f, &sector)
}

// readHeader reads the header of a map, which another process may be rewriting to seal the layer or
// to add checksums. The sector is written as a whole, but a read in the middle of the write may see
// a part of each: then it is repeated.
func readHeader(f vfs.File, sector *[SectorSize]byte) (Header, error) {
	for attempt := 1; ; attempt++ {
		if n, err := f.ReadAt(sector[:], 0); err != nil {
			if isEOF(err) {
				return Header{}, finding.New(ErrNotLayer, f.Name(), "header", "512 bytes", n,
					adviceFiles)
			}
			return Header{}, err
		}
		h, err := decodeHeader(sector)
		if attempt == 3 || !errors.Is(err, ErrDamaged) {
			return h, withPath(f.Name(), err)
		}
	}
}

func (l *Layer) checkExpected(o OpenParams) error {
	h, e := &l.header, &o.Expect
	mismatch := func(what string, expected, found any, advice string) error {
		return finding.New(ErrMismatch, l.paths.Map, what, expected, found, advice)
	}
	switch {
	case o.Write && h.State == Sealed:
		return finding.New(ErrSealed, l.paths.Map, "state", "head", "sealed",
			"it can only be read: put back the head, or the manifest that names it")
	case e.State != 0 && e.State != h.State:
		sentinel := ErrNotSealed
		if h.State == Sealed {
			sentinel = ErrSealed
		}
		return finding.New(sentinel, l.paths.Map, "state", e.State.String(), h.State.String(),
			adviceFiles)
	case e.UUID != uuid.Nil && e.UUID != h.UUID:
		return mismatch("UUID", e.UUID, h.UUID, adviceFiles)
	case e.Parent != nil && *e.Parent != h.Parent:
		return mismatch("parent", parentName(*e.Parent), parentName(h.Parent),
			"put the layers in the order in which they were made")
	case e.Size != 0 && e.Size != h.Size:
		return mismatch("size of the disk in bytes", e.Size, h.Size, adviceFiles)
	case e.BlockSize != 0 && e.BlockSize != h.BlockSize:
		return mismatch("block size in bytes", e.BlockSize, h.BlockSize, adviceFiles)
	case e.Base != nil && *e.Base != h.Base:
		return mismatch("fingerprint of the base", baseName(*e.Base), baseName(h.Base),
			"put back the base that the layer was made on")
	case e.BaseSize != nil && *e.BaseSize != h.BaseSize:
		return mismatch("bytes of the base that belong to the stack", *e.BaseSize, h.BaseSize,
			"put back the layers, or the manifest, that belong together")
	case h.DataOffset != l.paths.DataOffset:
		return mismatch("offset of the data in bytes", l.paths.DataOffset, h.DataOffset,
			"give the offset that the layer was made with")
	}
	return nil
}

func parentName(id uuid.UUID) string {
	if id == uuid.Nil {
		return "none (the lowest layer)"
	}
	return "layer " + id.String()
}

func baseName(f Fingerprint) string {
	if f.IsZero() {
		return "none"
	}
	return f.String()
}

// checkMap verifies the bitmap, loads it unless the layer is sealed, and checks that the data file
// is long enough for it.
func (l *Layer) checkMap() error {
	h := &l.header
	size, err := l.mapf.Size()
	if err != nil {
		return err
	}
	if size < h.length() {
		return finding.New(ErrDamaged, "", "length of the map",
			fmt.Sprintf("at least %d bytes", h.length()), size, adviceRestore)
	}
	sealed := h.State == Sealed
	if !sealed {
		if l.bitmap, err = NewBitmap(h.Blocks()); err != nil {
			return err
		}
	}
	c := mapSummary{blocks: h.Blocks()}
	err = scanMap(l.mapf, h.MapPages(), func(page uint64, words []uint64) error {
		if err := c.add(page, words, h.HasMapCRC()); err != nil {
			return err
		}
		if !sealed {
			l.bitmap.load(page, words)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if sealed && c.crc != h.MapCRC {
		return finding.New(ErrDamaged, "", "checksum of the sealed map", hex32(h.MapCRC),
			hex32(c.crc), adviceRestore)
	}
	if h.Clean && c.count != h.Owned {
		return finding.New(ErrDamaged, "", "number of owned blocks", h.Owned, c.count,
			adviceRestore)
	}
	if h.HasMapCRC() && c.crc != h.MapCRC {
		return finding.New(ErrDamaged, "", "checksum of the map of a clean head", hex32(h.MapCRC),
			hex32(c.crc), adviceRestore)
	}
	return l.checkData(c.end)
}

// checkData checks the length of the data file; end is one more than the last owned block.
func (l *Layer) checkData(end uint64) error {
	size, err := l.data.Size()
	if err != nil {
		return err
	}
	need := l.header.DataOffset + min(int64(end)*int64(l.header.BlockSize), l.header.Size)
	if end > 0 && size < need {
		return finding.New(ErrDamaged, l.paths.Data,
			fmt.Sprintf("length of the data (last owned block is %d)", end-1),
			fmt.Sprintf("at least %d bytes", need), size, adviceRestore)
	}
	return nil
}

func isEOF(err error) bool { return errors.Is(err, io.EOF) }
