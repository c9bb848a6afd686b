package cow

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"cowblk/cow/layer"
	"cowblk/cow/vfs"
)

// openBase opens the base for reading, for as long as the disk is open: nobody may write to it meanwhile, be it a QEMU or
// another process of this program. It checks that the base is what it should be.
func (k *stack) openBase(b *BaseSpec) error {
	f, err := vfs.OpenImage(k.fs, b.Path, os.O_RDONLY)
	if err != nil {
		return err
	}
	k.base = f
	if err := k.shareBase(b, f); err != nil {
		return err
	}
	id, err := f.Identity()
	if err != nil {
		return err
	}
	changed := func(what string, expected, found any) error {
		return &layer.Fault{Path: b.Path, What: what, Expected: fmt.Sprint(expected), Found: fmt.Sprint(found),
			Advice: "put back the file that the layers were made over; if only its time was touched, have the base trusted again", Err: ErrBaseChanged}
	}
	if b.Identity != (vfs.Identity{}) {
		if id.Size != b.Identity.Size {
			return changed("size of the base in bytes", b.Identity.Size, id.Size)
		}
		if id.MTime != b.Identity.MTime {
			return changed("modification time of the base in nanoseconds", b.Identity.MTime, id.MTime)
		}
	}
	k.baseStart, k.baseSize = b.Offset, b.Size
	if k.baseSize == 0 {
		k.baseSize = max(0, id.Size-b.Offset)
	}
	if b.Offset > id.Size || k.baseSize > id.Size-b.Offset {
		return changed("length of the base", fmt.Sprintf("%d bytes from byte %d on", k.baseSize, b.Offset), fmt.Sprintf("%d bytes in all", id.Size))
	}
	// Whoever excludes this one has the file open for writing: no word helps.
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
		return &layer.Fault{Path: b.Path, What: "size", Expected: "a multiple of 512 bytes, within the file",
			Found: fmt.Sprintf("%d bytes from byte %d of %d", k.baseSize, b.Offset, size), Err: ErrSpec}
	}
	return k.lockBaseRange(b.Path, true)
}

// BaseLockedError is the refusal of a base by somebody else's lock.
type BaseLockedError struct {
	error
	// Writer: only a process can hold that lock which has the file open for writing. Otherwise everybody can who may read
	// it: see Options.ForceShare.
	Writer bool
}

func (e *BaseLockedError) Unwrap() error { return e.error }

// shareBase takes the locks of a reader that whoever may read the file can keep it from.
func (k *stack) shareBase(b *BaseSpec, f vfs.File) error {
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
	k.log.Warn("the base is used although somebody else has a lock on it: it must not change", "base", b.Path, "reason", err)
	if image != nil {
		// Whoever comes later is told.
		if err := f.LockImage(vfs.ImageForced); err != nil && !errors.Is(err, vfs.ErrImageLocked) {
			return err
		}
		if err := k.lockBase(b, f); err != nil && !errors.Is(err, layer.ErrInUse) {
			return err
		}
	}
	return nil
}

// lockBase takes the base's lock of a reader, which excludes a process, of any version, that serves the same file raw.
// Where a layer's data is in the same file there is none: AddSums wants it for itself.
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
		return nil // as without any lock before; the file is only read
	}
	return err
}

func unsupportedLock(err error) bool {
	return errors.Is(err, unix.ENOLCK) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EOPNOTSUPP)
}

// lockBaseRange locks the bytes of the base, which is open: they are nobody's to write, or, if it is raw, nobody
// else's at all.
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
