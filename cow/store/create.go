package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"cowblk/cow/layer"
	"cowblk/cow/shell"
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
		return invalidf("only one of --from, --base and --table can be given")
	case n == 0 && o.Size == 0:
		return invalidf("a disk needs something to lie on (--from IMAGE, --from DISK@TAG, --base PATH, --table LINE) or a size (--size 20G)")
	case o.Table != "" && o.Size != 0:
		return invalidf("the table says the disk's size: leave --size out")
	case o.Size < 0 || o.Size%SectorSize != 0:
		return invalidf("size %d is not a multiple of 512 bytes", o.Size)
	case o.BlockSize != 0 && (o.BlockSize < layer.MinBlockSize || o.BlockSize > layer.MaxBlockSize || o.BlockSize&(o.BlockSize-1) != 0):
		return invalidf("block size %d is not a power of two from 512 to 65536 bytes", o.BlockSize)
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
	m := &Manifest{Version: formatVersion, Name: name, Size: o.Size, BlockSize: o.BlockSize, Created: s.now().UTC()}
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
		return nil, invalidf("size %d is beyond the largest disk, %d bytes", m.Size, int64(layer.MaxSize))
	}
	return m, nil
}

// atLeast sets the disk's size to size, the size of its base, unless it is larger. below names the
// base.
func (m *Manifest) atLeast(size int64, below string) error {
	if m.Size != 0 && m.Size < size {
		return invalidf("size %d is smaller than %s, which has %d bytes: a disk can only be larger than what it lies on", m.Size, below, size)
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
				return invalidf("%q is a disk, and its head may still change: name one of its tags, %s@TAG (%s makes one; tags now: %s)",
					d.Name, d.Name, s.command("promote", d.Name, "--tag", "TAG"), listText(d.tags()))
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
	src, err := s.Disk(ref.Name)
	if err != nil {
		return err
	}
	i, err := src.Tagged(ref.Tag)
	if err != nil {
		return err
	}
	if m.BlockSize != 0 && m.BlockSize != src.BlockSize {
		return invalidf("block size %d: %s has %d, and all layers of a stack have the same", m.BlockSize, ref, src.BlockSize)
	}
	// Only this layer is read here: an open checks the others.
	only := *src
	only.Layers = src.Layers[i : i+1]
	if err := s.trustedFiles(&only); err != nil {
		return err
	}
	top, err := layer.ReadHeader(s.fs, s.paths(&src.Layers[i]).Map)
	if err != nil {
		return classify(err)
	}
	m.BlockSize, m.Base, m.TableStart = src.BlockSize, src.Base, src.TableStart
	m.Layers = append(m.Layers, src.Layers[:i+1]...)
	return m.atLeast(top.Size, ref.String())
}

func (m *Manifest) tags() []string {
	tags := []string{}
	for _, l := range m.Sealed() {
		if l.Tag != "" {
			tags = append(tags, l.Tag)
		}
	}
	return tags
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
		if i, terr := src.Tagged(ref.Tag); terr == nil && src.Layers[i].UUID == m.Layers[len(m.Layers)-2].UUID {
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
	if err := checkPathText("base", path); err != nil {
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
		return nil, &Mismatch{File: path, What: "content of the base", Expected: "a raw image", Found: "the map of a layer", Advice: "name the image that the layer lies on"}
	}
	if err := rawBase(s.fs, f, path, force); err != nil {
		return nil, err
	}
	size, err := f.Size()
	if err != nil {
		return nil, err
	}
	if size == 0 || size%SectorSize != 0 {
		return nil, &Mismatch{File: path, What: "size of the base", Expected: expectedSize, Found: quoteBytes(size), Advice: sizeAdvice(size)}
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
func (s *Store) lockBaseInPlace(f vfs.File, path string, size int64, share bool) (*vfs.RangeLock, error) {
	if err := f.Lock(false); errors.Is(err, vfs.ErrLocked) && !share {
		return nil, fmt.Errorf("%w\n%s", classify(layer.LockedElsewhere(f, "use as base", false)), shareAdvice)
	}
	lock, err := vfs.LockExtents(s.fs, f, 0, size, false)
	if errors.Is(err, vfs.ErrLocked) {
		return nil, classify(layer.InUseElsewhere(path, "use as base", false))
	}
	return lock, err
}

// shareAdvice names the option that ignores a lock: any process that can read a base can lock it.
const shareAdvice = "if you know that nobody changes the base: --force-share (of create --base, serve, run and export)"

// openBaseFile opens the base of a disk. ErrInUse: another process writes to it or has it locked, or
// the system uses it, unless share is set.
func openBaseFile(fsys vfs.FS, path string, share bool) (vfs.File, error) {
	f, err := vfs.OpenImage(fsys, path, os.O_RDONLY)
	if err != nil {
		return nil, refusedFile("base", path, err)
	}
	if !share {
		if err := refuseSystemUse(fsys, path, "--force-share"); err != nil {
			f.Close()
			return nil, fmt.Errorf("base: %w", err)
		}
	}
	if err := f.LockImage(vfs.ImageRead); errors.Is(err, vfs.ErrImageLocked) && share {
		return f, nil
	} else if err != nil {
		f.Close()
		err = fmt.Errorf("base: %w", classify(err))
		if errors.Is(err, ErrInUse) {
			err = fmt.Errorf("%w\n%s", err, shareAdvice)
		}
		return nil, err
	}
	return f, nil
}

// rawBase refuses a base in another image format, a compressed file and an archive, unless force is
// set.
func rawBase(fsys vfs.FS, f vfs.File, path string, force bool) error {
	format, err := probe(f)
	if err != nil {
		return fmt.Errorf("base: %w", err)
	}
	if format.name == FormatRaw || force {
		return nil
	}
	advice := format.advice(fsys, path, FormatRaw, "--force")
	switch {
	case format.name == FormatQcow2:
		advice = "import it: cowblk import " + shell.Path(path) + " NAME\nif the guest is to see the qcow2 file itself: --force"
	case !format.disk:
		advice += "\nif the guest is to see the file itself: --force"
	}
	return &Mismatch{File: path, What: "format of the base", Expected: "raw", Found: format.name, Advice: advice}
}

// baseOf describes size bytes of an open file from offset on.
func baseOf(f vfs.File, path string, offset, size int64) (*Base, error) {
	fingerprint, err := layer.ComputeFingerprint(f, offset, size)
	if err != nil {
		return nil, classify(err)
	}
	id, err := f.Identity()
	if err != nil {
		return nil, err
	}
	return &Base{Path: path, Offset: offset, Size: size, Fingerprint: fingerprint, Identity: &id}, nil
}
