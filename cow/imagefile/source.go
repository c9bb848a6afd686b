package imagefile

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"cowblk/cow/finding"
	"cowblk/cow/layer"
	"cowblk/cow/qcow2"
	"cowblk/cow/shell"
	"cowblk/cow/vfs"
)

// Options for Open; the zero value detects the format and refuses backing files.
type Options struct {
	Format     string // Raw or Qcow2; default: detected from the content
	Backing    bool   // accept backing files: their content becomes part of the image
	ForceShare bool   // read files that other processes have open for writing
	// Check, unless nil, is called with the path of each file before it is opened. Its error
	// refuses the file.
	Check func(path string) error
}

// Source is the content of an image to import: one file, or a qcow2 with its backing files.
type Source struct {
	Name   string // as given to Open
	Format string // Raw or Qcow2
	Size   int64  // bytes of the guest's disk
	chain  []*chainFile
}

// chainFile is one file of a source. The first in the chain is the top.
type chainFile struct {
	path     string // absolute, as named: names of backing files are relative to it
	realPath string // without symbolic links
	top      string // path of the first file of the chain, as the user named it
	fsys     vfs.FS
	format   string
	size     int64 // bytes of its disk
	file     vfs.File
	img      *qcow2.Image // nil: raw
	opened   vfs.Identity // when it was opened
	ranges   *vfs.RangeLock
}

// Open opens an image file, and its backing files if o allows that, and locks them against writers.
// name is absolute. It refuses what cannot be imported, with advice. Errors: finding.ErrRefused;
// layer.ErrInUse and vfs.ErrImageLocked (a process writes to a file).
func Open(fsys vfs.FS, name string, o Options) (*Source, error) {
	src := &Source{Name: name}
	top, err := openChainFile(fsys, name, name, o)
	if err != nil {
		return nil, err
	}
	src.chain = append(src.chain, top)
	err = top.open(o.Format)
	if err == nil {
		err = src.openBacking(fsys, o)
	}
	src.Format, src.Size = top.format, top.size
	if err == nil {
		err = src.checkSize()
	}
	if err != nil {
		return nil, errors.Join(err, src.Close())
	}
	return src, nil
}

// openChainFile opens one file of the chain below top and locks it against writers.
func openChainFile(fsys vfs.FS, path, top string, o Options) (*chainFile, error) {
	if o.Check != nil {
		if err := o.Check(path); err != nil {
			return nil, err
		}
	}
	f, err := vfs.OpenImage(fsys, path, os.O_RDONLY)
	if err != nil {
		return nil, Refused("image file", path, err)
	}
	c := &chainFile{path: path, realPath: vfs.RealPath(f), top: top, fsys: fsys, file: f}
	if !o.ForceShare {
		if err = CheckSystemUse(fsys, path, "--force-share"); err == nil {
			err = c.lock(fsys)
		}
		if errors.Is(err, layer.ErrInUse) || errors.Is(err, vfs.ErrImageLocked) {
			err = fmt.Errorf("%w\nstop what writes to it, or make a snapshot there; --force-share reads it anyway, and the image may mix old and new content", err)
		}
	}
	if err == nil {
		c.opened, err = f.Identity()
	}
	if err != nil {
		return nil, errors.Join(err, c.close())
	}
	return c, nil
}

// lock prevents writes to the file while it is read: by QEMU with its image locks, by a cowblk
// process that serves a disk with data in it with range locks, and by an earlier version that
// serves the file raw with a flock.
func (c *chainFile) lock(fsys vfs.FS) error {
	if err := c.file.LockImage(vfs.ImageRead); err != nil {
		return err
	}
	size, err := c.file.Size()
	if err != nil {
		return err
	}
	if err := c.file.Lock(false); errors.Is(err, vfs.ErrLocked) {
		return layer.LockedElsewhere(c.file, "image file", false)
	}
	if size == 0 {
		return nil
	}
	if c.ranges, err = vfs.LockExtents(fsys, c.file, 0, size, false); errors.Is(err,
		vfs.ErrLocked) {
		return layer.InUseElsewhere(c.path, "image file", false)
	}
	return err
}

func (c *chainFile) close() error {
	var err error
	if c.ranges != nil {
		err = c.ranges.Close()
	}
	return errors.Join(err, c.file.Close())
}

// open detects the format, unless format is Raw or Qcow2, and opens a qcow2.
func (c *chainFile) open(format string) error {
	found := &fileFormat{name: format}
	if format == "" {
		var err error
		if found, err = probe(c.file); err != nil {
			return err
		}
	}
	size, err := c.file.Size()
	if err != nil {
		return err
	}
	c.format = found.name
	switch found.name {
	case Raw:
		c.size = size
	case Qcow2:
		if c.img, err = qcow2.Open(c.file, size); err != nil {
			return c.qcow2Refusal(err)
		}
		c.size = c.img.Size
	default:
		return finding.New(nil, c.path, "format of the file", "raw or qcow2", found.name,
			found.advice(c.fsys, c.path, Qcow2, "--format raw"))
	}
	return nil
}

// ExpectedSize is the required size of a file with the content of a disk.
const ExpectedSize = "a positive multiple of 512 bytes"

// SizeAdvice advises on a file whose size is not ExpectedSize.
func SizeAdvice(size int64) string {
	if size == 0 {
		return "it is empty: copy or download it again"
	}
	return "a file that was not copied to its end looks like this: compare its length with the original's.\n" +
		"If it is complete, fill the last sector of a copy up: truncate -s %512 COPY"
}

// checkSize refuses a size that a disk cannot have.
func (src *Source) checkSize() error {
	refuse := func(expected, advice string) error {
		return finding.New(nil, src.Name, "size of the "+src.Format+" image", expected,
			finding.Bytes(src.Size), advice)
	}
	switch {
	case src.Size == 0 || src.Size%layer.SectorSize != 0:
		return refuse(ExpectedSize, SizeAdvice(src.Size))
	case src.Size > layer.MaxSize:
		return refuse(fmt.Sprintf("at most %d bytes", int64(layer.MaxSize)), "")
	}
	return nil
}

// Backing returns the backing files, from the top down.
func (src *Source) Backing() []Backing {
	var all []Backing
	for _, c := range src.chain[1:] {
		all = append(all, Backing{Path: shell.Text(c.realPath), Format: c.format})
	}
	return all
}

// unchanged refuses the source if one of its files has changed since the open.
func (src *Source) unchanged() error {
	for _, c := range src.chain {
		now, err := c.file.Identity()
		if err != nil {
			return err
		}
		if !SameState(c.opened, now) {
			return StateFinding(c.path, c.opened, now,
				"it was written to while it was being imported: stop the process that uses it, then try again")
		}
	}
	return nil
}

// locate finds the file of the chain that has the bytes of the disk from off on, nil for zeros, and
// the length of that range up to limit.
func (src *Source) locate(off, limit int64) (*chainFile, int64, error) {
	end := min(limit, src.Size)
	for _, c := range src.chain {
		if off >= c.size {
			return nil, end - off, nil // a longer file below is hidden from here on
		}
		end = min(end, c.size)
		if c.img == nil {
			start, stop, err := c.file.NextData(off)
			switch {
			case errors.Is(err, io.EOF):
				return nil, end - off, nil
			case err != nil:
				return nil, 0, err
			case start > off:
				return nil, min(start, end) - off, nil
			}
			return c, min(stop, end) - off, nil
		}
		kind, n, err := c.img.Status(off)
		if err != nil {
			return nil, 0, c.qcow2Refusal(err)
		}
		end = min(end, off+n)
		switch kind {
		case qcow2.Data:
			return c, end - off, nil
		case qcow2.Zero:
			return nil, end - off, nil
		}
	}
	return nil, end - off, nil
}

// next returns the first range [start, end) at or after off that may be nonzero; io.EOF if none.
// Its time depends on the tables and extents, not on the size.
func (src *Source) next(ctx context.Context, off int64) (start, end int64, err error) {
	for off < src.Size {
		if err := ctx.Err(); err != nil {
			return 0, 0, err
		}
		c, n, err := src.locate(off, src.Size)
		if err != nil {
			return 0, 0, err
		}
		if c != nil {
			return off, off + n, nil
		}
		off += n
	}
	return 0, 0, io.EOF
}

// ReadAt fills p. A read beyond the end is an error: callers know the size.
func (src *Source) ReadAt(p []byte, off int64) (int, error) {
	done := 0
	for done < len(p) {
		at := off + int64(done)
		if at >= src.Size {
			return done, fmt.Errorf("%s: %w", shell.Text(src.Name), io.ErrUnexpectedEOF)
		}
		c, n, err := src.locate(at, off+int64(len(p)))
		if err != nil {
			return done, err
		}
		part := p[done : done+int(n)]
		switch {
		case c == nil:
			clear(part)
		case c.img != nil:
			if _, err := c.img.ReadAt(part, at); err != nil {
				return done, c.qcow2Refusal(err)
			}
		default:
			if _, err := c.file.ReadAt(part, at); errors.Is(err, io.EOF) {
				return done, fmt.Errorf("%s: offset %d: %w", shell.Text(c.path), at,
					io.ErrUnexpectedEOF)
			} else if err != nil {
				return done, err
			}
		}
		done += len(part)
	}
	return done, nil
}

// Close closes all files.
func (src *Source) Close() error {
	var errs []error
	for _, c := range src.chain {
		errs = append(errs, c.close())
	}
	return errors.Join(errs...)
}
