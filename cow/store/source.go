package store

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/lima-vm/go-qcow2reader"
	"github.com/lima-vm/go-qcow2reader/image"
	"github.com/lima-vm/go-qcow2reader/image/qcow2"
	"github.com/lima-vm/go-qcow2reader/image/raw"

	"cowblk/cow/vfs"
)

// Formats that can be imported.
const (
	FormatRaw   = "raw"
	FormatQcow2 = "qcow2"
)

// source is an image to import.
type source struct {
	name   string
	format string
	size   int64 // bytes of the guest's disk
	file   vfs.File
	img    image.Image // nil: raw
	whole  bool        // every byte has to be read: extents of the qcow2 cannot be trusted, see openQcow2
}

// openSource opens an image file. format is FormatRaw, FormatQcow2 or empty: found from the content. What cannot be
// imported is refused with what to do about it.
func openSource(fsys vfs.FS, name, format string) (*source, error) {
	f, err := fsys.OpenFile(name, os.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	src := &source{name: name, format: format, file: f}
	if err := src.open(); err != nil {
		f.Close()
		return nil, err
	}
	return src, nil
}

func (src *source) open() error {
	var err error
	if src.format == "" {
		if src.format, err = probe(src.file); err != nil {
			return fmt.Errorf("%s: %w", src.name, err)
		}
	}
	switch src.format {
	case FormatRaw:
		src.size, err = src.file.Size()
	case FormatQcow2:
		err = src.openQcow2()
	default:
		return &Mismatch{File: src.name, What: "format", Expected: "raw or qcow2", Found: src.format,
			Advice: fmt.Sprintf("convert it first: qemu-img convert -f %s -O qcow2 %s %s.qcow2", src.format, src.name, src.name)}
	}
	if err != nil {
		return err
	}
	if src.size == 0 || src.size%SectorSize != 0 {
		return &Mismatch{File: src.name, What: "size of the " + src.format + " image", Expected: "a positive multiple of 512 bytes", Found: quoteBytes(src.size),
			Advice: fmt.Sprintf("it may be truncated; if it is complete, fill the last sector up: truncate -s %%512 %s", src.name)}
	}
	return nil
}

// probe finds the format from the first sector. Everything unknown is raw.
func probe(f vfs.File) (string, error) {
	sector := make([]byte, SectorSize)
	n, err := f.ReadAt(sector, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return "", err
	}
	if n >= len(qcow2.Magic) && string(sector[:len(qcow2.Magic)]) == qcow2.Magic {
		return FormatQcow2, nil
	}
	img, err := qcow2reader.OpenWithType(&prefix{sector[:n]}, "")
	if err != nil || img.Type() == raw.Type {
		return FormatRaw, nil
	}
	return string(img.Type()), nil
}

// prefix is a file of which nothing but the start exists.
type prefix struct{ p []byte }

func (r *prefix) ReadAt(p []byte, off int64) (int, error) {
	if off >= int64(len(r.p)) {
		return 0, io.EOF
	}
	n := copy(p, r.p[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// Limits of a qcow2 header, as QEMU has them: they bound what the reader allocates.
const (
	minClusterBits = 9
	maxClusterBits = 21
	maxL1Entries   = 32 << 20 / 8
	maxBacking     = 64 // images in a chain
	// extentSpan is how much one look at the tables covers, in bytes: between two the import can be interrupted.
	extentSpan = 1 << 30
)

// openQcow2 opens a qcow2 image and the chain of backing files its header names. The reader library trusts headers
// and names; what it would trip over is refused here first.
//
// With a backing file, the library's extents are not used: it takes the state of one small cluster of the backing
// image for that of the whole larger cluster above it (go-qcow2reader 0.7.1, clusterStatus). Reading all of it is
// slower and right.
func (src *source) openQcow2() error {
	advice := fmt.Sprintf("convert it first: qemu-img convert -O qcow2 %s %s.new.qcow2", src.name, src.name)
	refuse := func(what, expected, found string) error {
		return &Mismatch{File: src.name, What: what, Expected: expected, Found: found, Advice: advice}
	}
	if err := checkQcow2Header(src.file); err != nil {
		return refuse("qcow2 header", "an intact image that uses known features", err.Error())
	}
	chain := &backingChain{}
	img, err := qcow2.Open(namedReader{src.file}, chain.open)
	if err == nil {
		err = img.Readable()
	}
	if err != nil {
		if img != nil {
			_ = img.Close()
		}
		return refuse("qcow2 image", "one that can be read completely", err.Error())
	}
	src.img, src.size, src.whole = img, img.Size(), img.BackingFile != ""
	return nil
}

// checkQcow2Header looks at the fields that decide about memory and about trust (QEMU, docs/interop/qcow2.txt).
func checkQcow2Header(ra io.ReaderAt) error {
	h := make([]byte, 104)
	if n, err := ra.ReadAt(h, 0); err != nil && (n < 72 || !errors.Is(err, io.EOF)) {
		return fmt.Errorf("header: %w", err)
	}
	be := binary.BigEndian
	version, clusterBits, size, l1 := be.Uint32(h[4:]), be.Uint32(h[20:]), be.Uint64(h[24:]), be.Uint32(h[36:])
	switch {
	case string(h[:4]) != qcow2.Magic:
		return errors.New("no qcow2 magic")
	case version != 2 && version != 3:
		return fmt.Errorf("version %d", version)
	case clusterBits < minClusterBits || clusterBits > maxClusterBits:
		return fmt.Errorf("clusters of 2^%d bytes", clusterBits)
	case size > 1<<60:
		return fmt.Errorf("a disk of %d bytes", size)
	case l1 > maxL1Entries || uint64(l1)<<(2*clusterBits-3) < size:
		return fmt.Errorf("an L1 table of %d entries", l1)
	case version == 3 && be.Uint64(h[72:])&(1<<qcow2.IncompatibleFeaturesCorruptBit) != 0:
		return errors.New("the mark of a corrupt image")
	}
	return nil
}

// namedReader is the file without its Close: the source closes it, not the library.
type namedReader struct{ f vfs.File }

func (r namedReader) ReadAt(p []byte, off int64) (int, error) { return r.f.ReadAt(p, off) }
func (r namedReader) Name() string                            { return r.f.Name() }

// backingChain opens the backing files of one image.
type backingChain struct{ depth int }

// open implements image.OpenWithType. After an error the file is closed: the library forgets it.
func (c *backingChain) open(ra io.ReaderAt, t image.Type) (image.Image, error) {
	img, err := c.openOne(ra, t)
	if err == nil {
		return img, nil
	}
	if f, ok := ra.(*os.File); ok {
		_ = f.Close()
	}
	return failedImage{}, err
}

func (c *backingChain) openOne(ra io.ReaderAt, t image.Type) (image.Image, error) {
	if c.depth++; c.depth > maxBacking {
		return nil, fmt.Errorf("more than %d backing files", maxBacking)
	}
	// The library takes the size from stat, which has none for a device, and would read zeros instead of the device.
	if f, ok := ra.(*os.File); ok {
		if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
			return nil, errors.New("it is not a regular file")
		}
	}
	switch t {
	case raw.Type:
		return raw.Open(ra)
	case qcow2.Type:
		if err := checkQcow2Header(ra); err != nil {
			return nil, err
		}
		img, err := qcow2.Open(ra, c.open)
		if err == nil {
			err = img.Readable()
		}
		return img, err
	}
	return nil, fmt.Errorf("its format, %q, is not raw or qcow2", t)
}

// failedImage stands for a backing file that could not be opened: the library closes what it is given with an error.
type failedImage struct{ image.Image }

func (failedImage) Close() error { return nil }

// next returns the first range [start, end) at or after off that may hold anything but zeros; io.EOF if none.
func (src *source) next(ctx context.Context, off int64) (start, end int64, err error) {
	if off >= src.size {
		return 0, 0, io.EOF
	}
	switch {
	case src.img == nil:
		start, end, err = src.file.NextData(off)
		return start, min(end, src.size), err
	case src.whole:
		return off, src.size, nil
	}
	for off < src.size {
		if err := ctx.Err(); err != nil {
			return 0, 0, err
		}
		e, err := src.img.Extent(off, min(src.size-off, extentSpan))
		if err != nil {
			return 0, 0, err
		}
		if e.Length <= 0 {
			return 0, 0, fmt.Errorf("%s: the qcow2 tables end at offset %d of %d", src.name, off, src.size)
		}
		if !e.Zero {
			return off, min(off+e.Length, src.size), nil
		}
		off += e.Length
	}
	return 0, 0, io.EOF
}

// ReadAt fills p; the end of the source within p is an error, for its size is known.
func (src *source) ReadAt(p []byte, off int64) (int, error) {
	var ra io.ReaderAt = src.file
	if src.img != nil {
		ra = src.img
	}
	done := 0
	for done < len(p) {
		n, err := ra.ReadAt(p[done:], off+int64(done))
		done += n
		if done < len(p) && err != nil && (n == 0 || !errors.Is(err, io.EOF)) {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return done, fmt.Errorf("%s: offset %d: %w", src.name, off+int64(done), err)
		}
	}
	return done, nil
}

// Close closes the file, and the backing files of a qcow2.
func (src *source) Close() error {
	var err error
	if src.img != nil {
		err = src.img.Close()
	}
	return errors.Join(err, src.file.Close())
}
