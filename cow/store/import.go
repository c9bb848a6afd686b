package store

import (
	"context"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"

	"cowblk/cow/layer"
	"cowblk/cow/shell"
	"cowblk/cow/vfs"
)

// chunkSize is the size of one read when content is copied or hashed, in bytes.
const chunkSize = 1 << 20

// holeSize is the unit in which zeros become holes, in bytes: one block of the file system.
const holeSize = 4096

// Phases of an import, for ImportOptions.Progress.
const (
	PhaseCopy   = "copy"
	PhaseVerify = "verify"
)

// ImportOptions for Import; the zero value is usable.
type ImportOptions struct {
	Format string // FormatRaw or FormatQcow2; default: detected from the content
	// Backing accepts a qcow2 with backing files. Their content becomes part of the image.
	Backing bool
	// ForceShare reads files that other processes have open for writing and ignores QEMU's image
	// locks.
	ForceShare bool
	// SHA256 also records the SHA-256 of the whole content, which reads holes too.
	SHA256 bool
	// Progress, if not nil, receives the number of bytes that a phase has processed.
	Progress func(phase string, done, total int64)
}

// Import makes an image of a raw or qcow2 file. It copies the file sparsely, makes the copy
// durable, reads it back, compares it and records its digest. The time depends on the data in the
// file, not on its size. The source is locked against writers and not changed. A failed or
// interrupted import leaves nothing. Errors: ErrExists, ErrInvalid, ErrRefused, ErrInUse (another
// process writes to the source), the context's.
func (s *Store) Import(ctx context.Context, path, name string, o ImportOptions) (_ *Image, err error) {
	defer func() { err = s.adviseNoSpace(err) }()
	if err := CheckName("image", name); err != nil {
		return nil, err
	}
	if o.Format != "" && o.Format != FormatRaw && o.Format != FormatQcow2 {
		return nil, invalidf("format %q: expected raw or qcow2", o.Format)
	}
	// Before the copy; checked again with the store locked when it is done.
	if err := s.checkFree(name); err != nil {
		return nil, err
	}
	if path == "" {
		return nil, invalidf("the file to import has an empty name")
	}
	path, err = filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	in, err := s.openSource(path, &o)
	if err != nil {
		return nil, fmt.Errorf("import: %w", err)
	}
	defer in.Close()
	tx, err := s.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer tx.close()
	img, err := tx.importImage(ctx, in, name, o)
	if err != nil {
		return nil, fmt.Errorf("import %s: %w", shell.Text(path), err)
	}
	err = s.locked(ctx, func() error {
		if err := s.checkFree(name); err != nil {
			return err
		}
		return tx.moveIn(tx.path("image"), imagesDir, name)
	})
	if err != nil {
		return nil, err
	}
	return img, nil
}

func (tx *txn) importImage(ctx context.Context, in *source, name string, o ImportOptions) (*Image, error) {
	fsys := tx.s.fs
	if err := fsys.MkdirAll(tx.path("image"), dirPerm); err != nil {
		return nil, err
	}
	// 0444 against accidental writes. This descriptor stays writable.
	out, err := fsys.OpenFile(tx.path("image", dataFile), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o400)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	written, err := copySparse(ctx, out, in, func(done int64) { progress(o, PhaseCopy, done, in.size) })
	if err != nil {
		return nil, err
	}
	if err := in.unchanged(); err != nil {
		return nil, err
	}
	img := &Image{
		Version: formatVersion, Name: name, Size: in.size,
		Source: shell.Text(in.name), Format: in.format, Backing: in.backing(), Imported: tx.s.now().UTC(),
	}
	img.ChunkSHA256, err = hashChunks(ctx, out, in.size, func(done int64) { progress(o, PhaseVerify, done, in.size) }, written.compare)
	if err == nil {
		err = written.end()
	}
	if err != nil {
		return nil, err
	}
	if o.SHA256 {
		if img.SHA256, err = hashFile(ctx, out, in.size, nil); err != nil {
			return nil, err
		}
	}
	if img.Fingerprint, err = layer.ComputeFingerprint(out, 0, in.size); err != nil {
		return nil, err
	}
	if img.Identity, err = out.Identity(); err != nil {
		return nil, err
	}
	return img, tx.s.writeDocument(tx.path("image", imageFile), img)
}

func progress(o ImportOptions, phase string, done, total int64) {
	if o.Progress != nil {
		o.Progress(phase, done, total)
	}
}

// writtenChunks holds the checksums of the written nonzero chunks in ascending order.
type writtenChunks struct {
	path   string
	chunks []writtenChunk
}

type writtenChunk struct {
	number int64  // offset / chunkSize
	sum    uint32 // CRC-32C, which has a processor instruction
}

func checksum(p []byte) uint32 { return crc32.Checksum(p, crc32.MakeTable(crc32.Castagnoli)) }

func (w *writtenChunks) differs(number int64) error {
	return refused(w.path, fmt.Sprintf("content read back at offset %d", number*chunkSize),
		"what was written", "something else",
		"check the machine's memory and the disk under the store")
}

// compare compares a chunk that was read back at off with its checksum, and removes the checksum.
func (w *writtenChunks) compare(off int64, p []byte) error {
	number := off / chunkSize
	if len(w.chunks) > 0 && w.chunks[0].number < number {
		return w.differs(w.chunks[0].number)
	}
	if isZero(p) {
		return nil
	}
	if len(w.chunks) == 0 || w.chunks[0] != (writtenChunk{number, checksum(p)}) {
		return w.differs(number)
	}
	w.chunks = w.chunks[1:]
	return nil
}

// end reports a chunk that was written and not read back.
func (w *writtenChunks) end() error {
	if len(w.chunks) > 0 {
		return w.differs(w.chunks[0].number)
	}
	return nil
}

// copySparse durably copies in to the empty file out, with holes for zeros.
func copySparse(ctx context.Context, out vfs.File, in *source, progress func(done int64)) (*writtenChunks, error) {
	if err := out.Truncate(in.size); err != nil {
		return nil, err
	}
	w := &writtenChunks{path: out.Name()}
	err := eachChunk(ctx, in, in.size, progress, func(off int64, p []byte) error {
		if isZero(p) {
			return nil
		}
		w.chunks = append(w.chunks, writtenChunk{off / chunkSize, checksum(p)})
		return writeSparse(out, p, off)
	})
	if err != nil {
		return nil, err
	}
	return w, out.Datasync()
}

// writeSparse writes the runs of nonzero blocks of p.
func writeSparse(out vfs.File, p []byte, off int64) error {
	zero := func(i int) bool { return isZero(p[i:min(i+holeSize, len(p))]) }
	for i := 0; i < len(p); {
		if zero(i) {
			i += holeSize
			continue
		}
		j := i + holeSize
		for j < len(p) && !zero(j) {
			j += holeSize
		}
		j = min(j, len(p))
		if _, err := out.WriteAt(p[i:j], off+int64(i)); err != nil {
			return err
		}
		i = j
	}
	return nil
}
