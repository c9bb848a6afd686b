package store

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"cowblk/cow/finding"
	"cowblk/cow/imagefile"
	"cowblk/cow/layer"
	"cowblk/cow/shell"
)

// Phases of an import, for ImportOptions.Progress.
const (
	PhaseCopy   = "copy"
	PhaseVerify = "verify"
)

// ImportOptions for Import; the zero value is usable.
type ImportOptions struct {
	Format string // imagefile.Raw or imagefile.Qcow2; default: detected from the content
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
func (s *Store) Import(ctx context.Context, path, name string, o ImportOptions) (_ *Image,
	err error) {
	defer func() { err = s.adviseNoSpace(err) }()
	if err := CheckName("image", name); err != nil {
		return nil, err
	}
	if o.Format != "" && o.Format != imagefile.Raw && o.Format != imagefile.Qcow2 {
		return nil, finding.Invalidf("format %q: expected raw or qcow2", o.Format)
	}
	// Before the copy; checked again with the store locked when it is done.
	if err := s.checkFree(name); err != nil {
		return nil, err
	}
	if path == "" {
		return nil, finding.Invalidf("the file to import has an empty name")
	}
	path, err = filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	in, err := imagefile.Open(s.fs, path, imagefile.Options{
		Format: o.Format, Backing: o.Backing, ForceShare: o.ForceShare,
		Check: func(path string) error { return refuseImportOf(s.fs, path) },
	})
	if err != nil {
		return nil, fmt.Errorf("import: %w", Classify(err))
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

func (tx *txn) importImage(ctx context.Context, in *imagefile.Source, name string,
	o ImportOptions) (*Image, error) {
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
	digest, err := in.CopyTo(ctx, out, func(done int64) { progress(o, PhaseCopy, done, in.Size) },
		func(done int64) { progress(o, PhaseVerify, done, in.Size) })
	if err != nil {
		return nil, err
	}
	img := &Image{
		Version: formatVersion, Name: name, Size: in.Size, ChunkSHA256: digest,
		Source: shell.Text(in.Name), Format: in.Format, Backing: in.Backing(),
		Imported: tx.s.now().UTC(),
	}
	if o.SHA256 {
		if img.SHA256, err = imagefile.SHA256(ctx, out, in.Size, func(int64) {}); err != nil {
			return nil, err
		}
	}
	if img.Fingerprint, err = layer.ComputeFingerprint(out, 0, in.Size); err != nil {
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
