package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"cowblk/cow/finding"
	"cowblk/cow/imagefile"
	"cowblk/cow/layer"
	"cowblk/cow/vfs"
)

// CreateOptions for Create select the base of the new disk. At most one of From, Base and Table may
// be set. Without any, the disk is empty and Size is required.
type CreateOptions struct {
	From  string // IMAGE or DISK@TAG
	Base  string // path of a raw image or block device, used in place
	Table string // device-mapper table line of dm-cow
	// Size of the disk in bytes; default: the size of its base. It must not be smaller than that.
	Size int64
	// BlockSize in bytes, 512 to 65536; default: that of the layers below, else 4096.
	BlockSize int
	// Force formats maps of a Table that hold something else, accepts data of a Table that holds
	// something, and a Base in another image format.
	Force bool
	// ForceShare accepts a Base that another process has locked (see cow.Options.ForceShare) or
	// that the system uses.
	ForceShare bool
}

func (o *CreateOptions) check() error {
	n := 0
	for _, s := range []string{o.From, o.Base, o.Table} {
		if s != "" {
			n++
		}
	}
	switch {
	case n > 1:
		return finding.Invalidf("only one of --from, --base and --table can be given")
	case n == 0 && o.Size == 0:
		return finding.Invalidf(
			"a disk needs something to lie on (--from IMAGE, --from DISK@TAG, --base PATH, --table LINE) or a size (--size 20G)")
	case o.Table != "" && o.Size != 0:
		return finding.Invalidf("the table says the disk's size: leave --size out")
	case o.Size < 0 || o.Size%layer.SectorSize != 0:
		return finding.Invalidf("size %d is not a multiple of 512 bytes", o.Size)
	case o.BlockSize != 0 && (o.BlockSize < layer.MinBlockSize ||
		o.BlockSize > layer.MaxBlockSize || o.BlockSize&(o.BlockSize-1) != 0):
		return finding.Invalidf("block size %d is not a power of two from 512 to 65536 bytes",
			o.BlockSize)
	}
	return nil
}

// Create creates a disk with an empty head. Its cost does not depend on the size of the base.
// Errors: ErrInvalid, ErrExists, ErrNotFound (From), ErrRefused, ErrInUse (the maps of a table).
func (s *Store) Create(ctx context.Context, name string, o CreateOptions) (_ *Manifest, err error) {
	defer func() { err = s.adviseNoSpace(err) }()
	if err := CheckName("disk", name); err != nil {
		return nil, err
	}
	if err := o.check(); err != nil {
		return nil, err
	}
	if err := s.checkFree(name); err != nil {
		return nil, err
	}
	if o.Table != "" {
		return s.createFromTable(ctx, name, o)
	}
	m, err := s.newManifest(ctx, name, o)
	if err != nil {
		return nil, err
	}
	tx, err := s.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer tx.close()
	_, err = tx.newHead(m)
	if err == nil {
		err = tx.stageDisk(m)
	}
	if err != nil {
		return nil, fmt.Errorf("create disk %q: %w", name, err)
	}
	err = s.locked(ctx, func() error {
		if err := s.checkFree(name); err != nil {
			return err
		}
		if err := s.recheckSource(m, o.From); err != nil {
			return err
		}
		if o.Base != "" {
			p := &part{owner: "the new disk", kind: partBase, path: m.Base.Path, n: m.Base.Size}
			if err := s.refuseUsed([]*part{p}, true); err != nil {
				return err
			}
		}
		return tx.moveInDisk(m)
	})
	if err != nil {
		return nil, err
	}
	return m, nil
}

// newManifest returns the manifest of the new disk without its head.
func (s *Store) newManifest(ctx context.Context, name string, o CreateOptions) (*Manifest, error) {
	m := &Manifest{Version: formatVersion, Name: name, Size: o.Size, BlockSize: o.BlockSize,
		Created: s.now().UTC()}
	var err error
	switch {
	case o.From != "":
		err = s.resolveFrom(ctx, m, o.From)
	case o.Base != "":
		m.Base, err = s.baseInPlace(o.Base, o.Force, o.ForceShare)
	}
	if err != nil {
		return nil, err
	}
	if m.BlockSize == 0 {
		m.BlockSize = layer.DefaultBlockSize
	}
	if m.Base != nil && len(m.Layers) == 0 {
		if err := m.atLeast(m.Base.Size, m.Base.String()); err != nil {
			return nil, err
		}
	}
	if m.Size > layer.MaxSize {
		return nil, finding.Invalidf("size %d is beyond the largest disk, %d bytes", m.Size,
			int64(layer.MaxSize))
	}
	return m, nil
}

// atLeast sets the disk's size to size, the size of its base, unless it is larger. below names the
// base.
func (m *Manifest) atLeast(size int64, below string) error {
	if m.Size != 0 && m.Size < size {
		return finding.Invalidf(
			"size %d is smaller than %s, which has %d bytes: a disk can only be larger than what it lies on", m.Size, below, size)
	}
	m.Size = max(m.Size, size)
	return nil
}

// resolveFrom resolves --from: an image or a tag.
func (s *Store) resolveFrom(ctx context.Context, m *Manifest, from string) error {
	ref, err := ParseRef(from)
	if err != nil {
		return err
	}
	if ref.Tag == "" {
		img, err := s.Image(ref.Name)
		if errors.Is(err, ErrNotFound) {
			if d, derr := s.Disk(ref.Name); derr == nil {
				return finding.Invalidf(
					"%q is a disk, and its head may still change: name one of its tags, %s@TAG (%s makes one; tags now: %s)",
					d.Name, d.Name, s.command("promote", d.Name, "--tag", "TAG"),
					listText(d.tagsFrom(0)))
			}
		}
		if err != nil {
			return err
		}
		check := newFileChecker()
		defer check.Close()
		if err := s.trustedImage(check, img.Name); err != nil {
			return err
		}
		m.Base = &Base{Image: img.Name, Size: img.Size, Fingerprint: img.Fingerprint}
		return s.checkImage(ctx, m)
	}
	if err := s.recoverFor(ctx, ref.Name); err != nil {
		return err
	}
	if err := s.trustedDisk(ref.Name); err != nil {
		return err
	}
	below, err := s.upToTag(ref)
	if err != nil {
		return err
	}
	if m.BlockSize != 0 && m.BlockSize != below.BlockSize {
		return finding.Invalidf("block size %d: %s has %d, and all layers of a stack have the same",
			m.BlockSize, ref, below.BlockSize)
	}
	m.BlockSize, m.Base, m.TableStart, m.Layers = below.BlockSize, below.Base, below.TableStart,
		below.Layers
	return m.atLeast(below.Size, ref.String())
}

// recheckSource repeats checks with the store locked: the image or layers may have been removed
// meanwhile.
func (s *Store) recheckSource(m *Manifest, from string) error {
	if m.Base != nil && m.Base.Image != "" {
		if _, err := s.Image(m.Base.Image); err != nil {
			return err
		}
	}
	if len(m.Layers) == 1 {
		return nil
	}
	ref, err := ParseRef(from)
	if err != nil {
		return err
	}
	src, err := s.Disk(ref.Name)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return err
	}
	// The tag may be a new one of the same name: compare the layer.
	if err == nil {
		if i, terr := src.Tagged(ref.Tag); terr == nil &&
			src.Layers[i].UUID == m.Layers[len(m.Layers)-2].UUID {
			return nil
		}
	}
	return fmt.Errorf("%s %w any more: it was removed just now", from, ErrNotFound)
}

// baseInPlace describes a file or device that a disk uses as its base without a copy.
func (s *Store) baseInPlace(path string, force, share bool) (*Base, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	if err := finding.CheckPath("base", path); err != nil {
		return nil, err
	}
	if err := s.refuseStoreFile("base", path); err != nil {
		return nil, err
	}
	f, err := openBaseFile(s.fs, path, share)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if _, err := layer.ReadHeader(s.fs, path); err == nil {
		return nil, refused(path, "content of the base", "a raw image", "the map of a layer",
			"name the image that the layer lies on")
	}
	if !force {
		if err := imagefile.CheckBase(s.fs, f, path); err != nil {
			return nil, err
		}
	}
	size, err := f.Size()
	if err != nil {
		return nil, err
	}
	if size == 0 || size%layer.SectorSize != 0 {
		return nil, refused(path, "size of the base", imagefile.ExpectedSize, finding.Bytes(size),
			imagefile.SizeAdvice(size))
	}
	lock, err := s.lockBaseInPlace(f, path, size, share)
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	return baseOf(f, path, 0, size)
}

// lockBaseInPlace takes the locks that an open disk has on its base: a process of this or an
// earlier version may write it raw, or as part of a disk of another store. Close the RangeLock and
// f to release them.
func (s *Store) lockBaseInPlace(f vfs.File, path string, size int64, share bool) (*vfs.RangeLock,
	error) {
	if err := f.Lock(false); errors.Is(err, vfs.ErrLocked) && !share {
		return nil, fmt.Errorf("%w\n%s", Classify(layer.LockedElsewhere(f, "use as base", false)),
			shareAdvice)
	}
	lock, err := vfs.LockExtents(s.fs, f, 0, size, false)
	if errors.Is(err, vfs.ErrLocked) {
		return nil, Classify(layer.InUseElsewhere(path, "use as base", false))
	}
	return lock, err
}

// openBaseFile opens the base of a disk. ErrInUse: another process writes to it or has it locked,
// or the system uses it, unless share is set.
func openBaseFile(fsys vfs.FS, path string, share bool) (vfs.File, error) {
	f, err := vfs.OpenImage(fsys, path, os.O_RDONLY)
	if err != nil {
		return nil, imagefile.Refused("base", path, err)
	}
	if !share {
		if err := Classify(imagefile.CheckSystemUse(fsys, path, "--force-share")); err != nil {
			f.Close()
			return nil, fmt.Errorf("base: %w", err)
		}
	}
	if err := f.LockImage(vfs.ImageRead); errors.Is(err, vfs.ErrImageLocked) && share {
		return f, nil
	} else if err != nil {
		f.Close()
		err = fmt.Errorf("base: %w", Classify(err))
		if errors.Is(err, ErrInUse) {
			err = fmt.Errorf("%w\n%s", err, shareAdvice)
		}
		return nil, err
	}
	return f, nil
}

// baseOf describes size bytes of an open file from offset on.
func baseOf(f vfs.File, path string, offset, size int64) (*Base, error) {
	fingerprint, err := layer.ComputeFingerprint(f, offset, size)
	if err != nil {
		return nil, Classify(err)
	}
	id, err := f.Identity()
	if err != nil {
		return nil, err
	}
	return &Base{Path: path, Offset: offset, Size: size, Fingerprint: fingerprint, Identity: &id},
		nil
}
