package cow

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"cowblk/cow/finding"
	"cowblk/cow/layer"
	"cowblk/cow/vfs"
)

// openBase opens the base for reading and checks that it is the expected one. It takes locks that
// keep other processes, QEMU and this program alike, from writing to it while the disk is open.
func (k *stack) openBase(b *BaseSpec) error {
	f, err := vfs.OpenImage(k.fs, b.Path, os.O_RDONLY)
	if err != nil {
		return err
	}
	k.base = f
	if err := k.lockBaseShared(b, f); err != nil {
		return err
	}
	id, err := f.Identity()
	if err != nil {
		return err
	}
	changed := func(what string, expected, found any) error {
		return finding.New(ErrBaseChanged, b.Path, what, expected, found,
			"put back the file that the layers were made over; if only its time was touched, have the base trusted again")
	}
	if b.Identity != (vfs.Identity{}) {
		if id.Size != b.Identity.Size {
			return changed("size of the base in bytes", b.Identity.Size, id.Size)
		}
		if id.MTime != b.Identity.MTime {
			return changed("modification time of the base in nanoseconds", b.Identity.MTime,
				id.MTime)
		}
	}
	k.baseStart, k.baseSize = b.Offset, b.Size
	if k.baseSize == 0 {
		k.baseSize = max(0, id.Size-b.Offset)
	}
	if b.Offset > id.Size || k.baseSize > id.Size-b.Offset {
		return changed("length of the base",
			fmt.Sprintf("%d bytes from byte %d on", k.baseSize, b.Offset),
			fmt.Sprintf("%d bytes in all", id.Size))
	}
	// The process that excludes this one has the file open for writing: ForceShare does not help.
	if err := k.lockBaseRange(b.Path, false); errors.Is(err, layer.ErrInUse) {
		return &BaseLockedError{err, true}
	} else if err != nil {
		return err
	}
	if k.baseSum, err = layer.ComputeFingerprint(f, b.Offset, k.baseSize); err != nil {
		return err
	}
	if !b.Fingerprint.IsZero() && b.Fingerprint != k.baseSum {
		return changed("fingerprint of the base", b.Fingerprint, k.baseSum)
	}
	return nil
}

// openRaw opens the base for reading and writing, for this process alone.
func (k *stack) openRaw(b *BaseSpec) error {
	f, err := vfs.OpenImage(k.fs, b.Path, os.O_RDWR)
	if err != nil {
		return err
	}
	k.base = f
	if err := f.LockImage(vfs.ImageWrite); err != nil {
		return err
	}
	if err := lockRaw(f, true); err != nil {
		return err
	}
	size, err := f.Size()
	if err != nil {
		return err
	}
	k.baseStart, k.baseSize = b.Offset, b.Size
	if k.baseSize == 0 {
		k.baseSize = size - b.Offset
	}
	if k.baseSize <= 0 || k.baseSize > size-b.Offset || k.baseSize%layer.SectorSize != 0 {
		return finding.New(ErrSpec, b.Path, "size", "a multiple of 512 bytes, within the file",
			fmt.Sprintf("%d bytes from byte %d of %d", k.baseSize, b.Offset, size), "")
	}
	return k.lockBaseRange(b.Path, true)
}

// BaseLockedError says that another process holds a lock that excludes the use of the base.
type BaseLockedError struct {
	error
	// Writer: only a process that has the file open for writing can hold that lock. Otherwise any
	// process that may read the file can hold it: see Options.ForceShare.
	Writer bool
}

func (e *BaseLockedError) Unwrap() error { return e.error }

// lockBaseShared takes the locks of a reader that any process that may read the file can refuse.
func (k *stack) lockBaseShared(b *BaseSpec, f vfs.File) error {
	// First the lock whose refusal names the other process.
	image, file := f.LockImage(vfs.ImageRead), error(nil)
	if image == nil {
		file = k.lockBase(b, f)
	}
	err := errors.Join(image, file)
	if !errors.Is(err, vfs.ErrImageLocked) && !errors.Is(err, layer.ErrInUse) {
		return err
	}
	if image == nil {
		err = file
	} else {
		err = image
	}
	if !k.forceShare {
		return &BaseLockedError{error: err}
	}
	k.log.Warn("the base is used although another process holds a lock on it: it must not change",
		"base", b.Path, "err", err)
	if image != nil {
		// Processes that come later are refused.
		if err := f.LockImage(vfs.ImageForced); err != nil && !errors.Is(err, vfs.ErrImageLocked) {
			return err
		}
		if err := k.lockBase(b, f); err != nil && !errors.Is(err, layer.ErrInUse) {
			return err
		}
	}
	return nil
}

// lockBase takes the flock of a reader, which excludes a process, of any version, that serves the
// same file raw. It takes none where the data of a layer is in the same file: AddChecksums needs
// the exclusive lock there.
func (k *stack) lockBase(b *BaseSpec, f vfs.File) error {
	for _, p := range k.layerPaths {
		if p.Data == b.Path {
			return nil
		}
	}
	return lockRaw(f, false)
}

func lockRaw(f vfs.File, exclusive bool) error {
	err := f.Lock(exclusive)
	if errors.Is(err, vfs.ErrLocked) {
		return layer.LockedElsewhere(f, "use of the file", exclusive)
	}
	if unsupportedLock(err) && !exclusive {
		return nil // the file is only read, so it works without
	}
	return err
}

func unsupportedLock(err error) bool {
	return errors.Is(err, unix.ENOLCK) || errors.Is(err, unix.ENOSYS) ||
		errors.Is(err, unix.EOPNOTSUPP)
}

// lockBaseRange locks the bytes of the open base: against writers, or, for a raw disk, against
// every other use.
func (k *stack) lockBaseRange(path string, exclusive bool) error {
	if k.baseSize == 0 {
		return nil
	}
	lock, err := vfs.LockExtents(k.fs, k.base, k.baseStart, k.baseSize, exclusive)
	if errors.Is(err, vfs.ErrLocked) {
		return layer.InUseElsewhere(path, "use of its bytes", exclusive)
	}
	if err != nil {
		return err
	}
	k.base = lock.Attach(k.base)
	return nil
}
