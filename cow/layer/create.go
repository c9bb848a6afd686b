package layer

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/google/uuid"

	"cowblk/cow/finding"
	"cowblk/cow/vfs"
)

// CreateParams describe a new head.
type CreateParams struct {
	UUID      uuid.UUID // zero: a random one
	Parent    uuid.UUID // layer below; zero: none, the layer lies on the base or on nothing
	Size      int64     // of the disk, bytes: a multiple of 512
	BlockSize uint32    // bytes; zero: DefaultBlockSize
	Base      Fingerprint
	BaseSize  int64       // bytes of the base that were fingerprinted
	Created   time.Time   // zero: now
	Perm      fs.FileMode // of the new files; zero: 0600
}

// header fills in the defaults and checks the rest. Errors wrap ErrInvalid.
func (c *CreateParams) header(p Paths) (Header, error) {
	h := Header{
		UUID: c.UUID, Parent: c.Parent, Size: c.Size, BlockSize: c.BlockSize, State: Head,
		DataOffset: p.DataOffset, Created: c.Created, Base: c.Base, BaseSize: c.BaseSize,
	}
	if h.UUID == uuid.Nil {
		id, err := uuid.NewRandom()
		if err != nil {
			return Header{}, fmt.Errorf("create layer %s: %w", p.Map, err)
		}
		h.UUID = id
	}
	if h.BlockSize == 0 {
		h.BlockSize = DefaultBlockSize
	}
	if h.Created.IsZero() {
		h.Created = time.Now()
	}
	h.Created = instant(nanoseconds(h.Created))
	if err := checkFields(&h, MapOffset, 0); err != nil {
		return Header{}, finding.New(ErrInvalid, p.Map, err.Error(), "", "", adviceParams)
	}
	if filepath.Clean(p.Map) == filepath.Clean(p.Data) {
		return Header{}, finding.New(ErrInvalid, p.Map, "paths", "a map and a data file",
			"the same file for both", adviceParams)
	}
	return h, nil
}

// CreateHead creates both files of a new, empty head and returns it open for writing. Files and
// directory entries are durable when it returns. Neither file may exist; after an error it removes
// what it has created.
func CreateHead(fsys vfs.FS, p Paths, c CreateParams) (*Layer, error) {
	h, err := c.header(p)
	if err != nil {
		return nil, err
	}
	l := newLayer(fsys, p, true)
	var made []string
	undo := func(err error) error {
		_ = l.Abandon()
		for _, name := range made {
			_ = fsys.Remove(name)
		}
		return fmt.Errorf("create layer: %w", err)
	}
	perm := c.Perm
	if perm == 0 {
		perm = 0o600
	}
	const flags = os.O_RDWR | os.O_CREATE | os.O_EXCL
	if l.mapf, err = fsys.OpenFile(p.Map, flags, perm); err != nil {
		return nil, undo(err)
	}
	made = append(made, p.Map)
	if l.data, err = fsys.OpenFile(p.Data, flags, perm); err != nil {
		return nil, undo(err)
	}
	made = append(made, p.Data)
	if err := lockMap(l.mapf, true); err != nil {
		return nil, undo(err)
	}
	l.header = h
	if err := l.lockRanges(true); err != nil {
		return nil, undo(err)
	}
	if err := l.format(h); err != nil {
		return nil, undo(err)
	}
	for i, name := range []string{p.Map, p.Data} {
		dir := filepath.Dir(name)
		if i > 0 && dir == filepath.Dir(p.Map) {
			continue
		}
		if err := fsys.SyncDir(dir); err != nil {
			return nil, undo(err)
		}
	}
	return l, nil
}

// format sets the lengths of the open, empty files and writes the header last, so that everything
// it promises is durable before it.
func (l *Layer) format(h Header) error {
	if err := ensureSize(l.data, h.DataOffset+h.Size); err != nil {
		return err
	}
	if err := ensureSize(l.mapf, h.MapSize()); err != nil {
		return err
	}
	var err error
	if l.bitmap, err = NewBitmap(h.Blocks()); err != nil {
		return err
	}
	if err := l.sync(l.data); err != nil {
		return err
	}
	if err := l.writeHeader(h); err != nil {
		return err
	}
	return l.data.AdviseRandom()
}

// ensureSize makes a file at least n bytes long. A device must have them already.
func ensureSize(f vfs.File, n int64) error {
	size, err := f.Size()
	if err != nil || size >= n {
		return err
	}
	return f.Truncate(n)
}

// FormatIfZero makes a head of an existing map and an existing data file or device. The part of the
// map that the layer uses must be all zeros, otherwise the error wraps ErrNotZero, unless force is
// set. The data is not read: no block is owned. Files that are too short are extended.
func FormatIfZero(fsys vfs.FS, p Paths, c CreateParams, force bool) (*Layer, error) {
	h, err := c.header(p)
	if err != nil {
		return nil, err
	}
	l := newLayer(fsys, p, true)
	if err := l.formatExisting(h, force); err != nil {
		_ = l.Abandon()
		return nil, fmt.Errorf("format layer: %w", err)
	}
	return l, nil
}

func (l *Layer) formatExisting(h Header, force bool) error {
	var err error
	if l.mapf, err = l.fs.OpenFile(l.paths.Map, os.O_RDWR, 0); err != nil {
		return err
	}
	if err := lockMap(l.mapf, true); err != nil {
		return err
	}
	if l.data, err = l.fs.OpenFile(l.paths.Data, os.O_RDWR, 0); err != nil {
		return err
	}
	l.header = h
	if err := l.lockRanges(true); err != nil {
		return err
	}
	for _, f := range []struct {
		vfs.File
		need int64
	}{{l.mapf, h.MapSize()}, {l.data, h.DataOffset + h.Size}} {
		if err := checkCapacity(f.File, f.need); err != nil {
			return err
		}
	}
	dirty, err := FirstNonZero(l.mapf, h.MapSize())
	if err != nil {
		return err
	}
	if dirty >= 0 {
		if !force {
			return finding.New(ErrNotZero, l.paths.Map, "content", "zeros, to be formatted",
				fmt.Sprintf("something else at offset %d", dirty),
				"name another map, one of zeros; this one is left as it is")
		}
		if err := zeroMap(l.mapf, h.MapSize()); err != nil {
			return err
		}
	}
	return l.format(h)
}

// checkCapacity refuses a device that is too small before anything is changed. A regular file can
// grow.
func checkCapacity(f vfs.File, need int64) error {
	id, err := f.Identity()
	if err != nil {
		return err
	}
	if id.Block && id.Size < need {
		return finding.New(ErrInvalid, f.Name(), "capacity of the device",
			fmt.Sprintf("at least %d bytes", need), id.Size,
			"use a larger device or a smaller disk")
	}
	return nil
}

// zeroMap zeroes the first n bytes of a map. It zeroes the header first, durably: a crash must not
// leave an old header over a partly zeroed bitmap.
func zeroMap(f vfs.File, n int64) error {
	size, err := f.Size()
	if err != nil {
		return err
	}
	if _, err := f.WriteAt(make([]byte, min(size, SectorSize)), 0); err != nil {
		return err
	}
	if err := f.Datasync(); err != nil {
		return err
	}
	if err := f.PunchHole(0, min(size, n)); err != nil {
		return err
	}
	return f.Datasync()
}

// FirstNonZero returns the offset of the first byte before end that is not zero, or -1.
func FirstNonZero(f vfs.File, end int64) (int64, error) {
	size, err := f.Size()
	if err != nil {
		return 0, err
	}
	end = min(end, size)
	buf := make([]byte, scanChunk)
	for off := int64(0); off < end; {
		start, stop, err := f.NextData(off)
		if isEOF(err) || err == nil && start >= end {
			return -1, nil
		}
		if err != nil {
			return 0, err
		}
		for off = start; off < min(stop, end); {
			n := min(min(stop, end)-off, scanChunk)
			if _, err := f.ReadAt(buf[:n], off); err != nil {
				return 0, err
			}
			for i, b := range buf[:n] {
				if b != 0 {
					return off + int64(i), nil
				}
			}
			off += n
		}
	}
	return -1, nil
}
