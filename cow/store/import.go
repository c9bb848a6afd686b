package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"

	"cowblk/cow/layer"
	"cowblk/cow/vfs"
)

// chunkSize is what one read takes when content is copied or hashed, in bytes.
const chunkSize = 1 << 20

// holeSize is the unit in which zeros become holes, in bytes: a file system block.
const holeSize = 4096

// Phases of an import, for ImportOptions.Progress.
const (
	PhaseCopy   = "copy"
	PhaseVerify = "verify"
)

// ImportOptions for Import; the zero value is usable.
type ImportOptions struct {
	Format string // FormatRaw, FormatQcow2; default: found from the content
	// Progress, if not nil, is told how many bytes of the image's size a phase has dealt with.
	Progress func(phase string, done, total int64)
}

// Import makes an image of a raw or qcow2 file: copied sparse, made durable, read back and compared, its SHA-256
// recorded. The source is not changed. An import that fails or is interrupted leaves nothing.
// Errors: ErrExists, ErrInvalid, ErrRefused, the context's.
func (s *Store) Import(ctx context.Context, src, name string, o ImportOptions) (*Image, error) {
	if err := CheckName("image", name); err != nil {
		return nil, err
	}
	if o.Format != "" && o.Format != FormatRaw && o.Format != FormatQcow2 {
		return nil, invalidf("format %q: expected raw or qcow2", o.Format)
	}
	// Before the work, and again with the store locked when it is done.
	if err := s.checkFree(name); err != nil {
		return nil, err
	}
	src, err := filepath.Abs(src)
	if err != nil {
		return nil, err
	}
	in, err := openSource(s.fs, src, o.Format)
	if err != nil {
		return nil, fmt.Errorf("import: %w", err)
	}
	defer in.Close()
	w, err := s.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer w.end()
	img, err := w.importImage(ctx, in, name, o)
	if err != nil {
		return nil, fmt.Errorf("import %s: %w", src, err)
	}
	err = s.locked(ctx, func() error {
		if err := s.checkFree(name); err != nil {
			return err
		}
		return w.moveIn(w.path("image"), imagesDir, name)
	})
	if err != nil {
		return nil, err
	}
	return img, nil
}

// moveIn renames a finished directory to its place and makes that durable, or takes it back.
func (w *work) moveIn(from, dir, name string) error {
	s := w.s
	if err := s.fs.MkdirAll(s.path(dir), dirPerm); err != nil {
		return err
	}
	to := s.path(dir, name)
	if err := s.fs.Rename(from, to); err != nil {
		return err
	}
	if err := s.fs.SyncDir(s.path(dir)); err != nil {
		return errors.Join(err, w.moveBack(to, from, dir))
	}
	return nil
}

func (w *work) importImage(ctx context.Context, in *source, name string, o ImportOptions) (*Image, error) {
	fsys := w.s.fs
	before, err := in.file.Identity()
	if err != nil {
		return nil, err
	}
	if err := fsys.MkdirAll(w.path("image"), dirPerm); err != nil {
		return nil, err
	}
	// 0444: nobody writes to an image by accident. This descriptor was there before.
	out, err := fsys.OpenFile(w.path("image", dataFile), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o400)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	sums, err := copySparse(ctx, out, in, func(done int64) { progress(o, PhaseCopy, done, in.size) })
	if err != nil {
		return nil, err
	}
	if after, err := in.file.Identity(); err != nil {
		return nil, err
	} else if !sameState(before, after) {
		m := changed(in.name, before, after)
		m.Advice = "it was written to while it was being imported: stop who uses it, then try again"
		return nil, m
	}
	img := &Image{
		Version: formatVersion, Name: name, Size: in.size,
		Source: in.name, Format: in.format, Imported: w.s.now().UTC(),
	}
	img.SHA256, err = hashFile(ctx, out, in.size, func(off int64, p []byte) error {
		progress(o, PhaseVerify, off+int64(len(p)), in.size)
		if i := off / chunkSize; checksum(p) != sums[i] {
			return &Mismatch{File: out.Name(), What: fmt.Sprintf("content read back at offset %d", off), Expected: "what was written",
				Found: "something else", Advice: "check the machine's memory and the disk under the store"}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if img.Fingerprint, err = layer.ComputeFingerprint(out, 0, in.size); err != nil {
		return nil, err
	}
	if img.Identity, err = out.Identity(); err != nil {
		return nil, err
	}
	return img, w.s.writeDocument(w.path("image", imageFile), img)
}

func progress(o ImportOptions, phase string, done, total int64) {
	if o.Progress != nil {
		o.Progress(phase, done, total)
	}
}

// checksum is CRC-32C, which processors have an instruction for.
func checksum(p []byte) uint32 { return crc32.Checksum(p, crc32.MakeTable(crc32.Castagnoli)) }

// copySparse writes in to the empty file out, leaving holes for zeros, and makes it durable. It returns the CRC-32C
// of every chunk of the content.
func copySparse(ctx context.Context, out vfs.File, in *source, progress func(done int64)) ([]uint32, error) {
	if err := out.Truncate(in.size); err != nil {
		return nil, err
	}
	zeros := make([]byte, chunkSize)
	zeroSum := checksum(zeros)
	buf := make([]byte, chunkSize)
	sums := make([]uint32, 0, (in.size+chunkSize-1)/chunkSize)
	start, end := int64(0), int64(0) // of the data range at or after off
	var err error
	for off := int64(0); off < in.size; off += chunkSize {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		chunk := min(in.size-off, chunkSize)
		clear(buf)
		empty := true
		for pos := off; pos < off+chunk; {
			if pos >= end && end < in.size {
				if start, end, err = in.next(ctx, max(pos, end)); errors.Is(err, io.EOF) {
					start, end = in.size, in.size
				} else if err != nil {
					return nil, err
				}
			}
			pos = max(pos, start)
			stop := min(end, off+chunk)
			if pos >= stop {
				break
			}
			if _, err := in.ReadAt(buf[pos-off:stop-off], pos); err != nil {
				return nil, err
			}
			empty = false
			pos = stop
		}
		switch {
		case !empty:
			sums = append(sums, checksum(buf[:chunk]))
			if err := writeSparse(out, buf[:chunk], zeros, off); err != nil {
				return nil, err
			}
		case chunk == chunkSize:
			sums = append(sums, zeroSum)
		default:
			sums = append(sums, checksum(zeros[:chunk]))
		}
		progress(off + chunk)
	}
	return sums, out.Datasync()
}

// writeSparse writes the runs of p's blocks that are not zero.
func writeSparse(out vfs.File, p, zeros []byte, off int64) error {
	isZero := func(i int) bool {
		n := min(holeSize, len(p)-i)
		return bytes.Equal(p[i:i+n], zeros[:n])
	}
	for i := 0; i < len(p); {
		if isZero(i) {
			i += holeSize
			continue
		}
		j := i + holeSize
		for j < len(p) && !isZero(j) {
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
