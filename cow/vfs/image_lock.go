package vfs

import (
	"errors"
	"fmt"
	"math/bits"

	"golang.org/x/sys/unix"
)

// ErrImageLocked is returned by File.LockImage when another open file description uses the image in
// a way that excludes this one: see ImageLockError.
var ErrImageLocked = errors.New("image is in use")

// ImageAccess is the use of a disk image, and what it allows others meanwhile.
type ImageAccess int

const (
	// ImageRead reads the image. Others may read it, and must not write to it or change its length.
	ImageRead ImageAccess = iota + 1
	// ImageWrite reads and writes the image. Others must not write to it or change its length, nor
	// open it as ImageRead, which needs content that does not change.
	ImageWrite
	// ImageForced is ImageRead by a user who states that no one writes: locks of others do not
	// exclude it, and its own locks exclude later writers.
	ImageForced
)

// QEMU's permissions on a block node, as bits. QEMU, qemu-img and qemu-storage-daemon announce them
// by locks on single bytes of the image file (QEMU, block/file-posix.c; docs/system/images.rst,
// "Disk image file locking"): a process with permission n locks byte lockPermBase+n; a process that
// denies it to others locks byte lockShareBase+n. All these locks are shared ones, of an open file
// description (F_OFD_SETLK): each side takes its own first, then tests for a byte of the other that
// excludes it. The bytes need not exist in the file, and a descriptor for reading is enough.
const (
	permRead   = 1 << iota // BLK_PERM_CONSISTENT_READ
	permWrite              // BLK_PERM_WRITE
	_                      // BLK_PERM_WRITE_UNCHANGED
	permResize             // BLK_PERM_RESIZE

	lockPermBase  = 100 // RAW_LOCK_PERM_BASE
	lockShareBase = 200 // RAW_LOCK_SHARED_BASE
	lockBits      = 64  // width of a set of permissions
)

// permissions returns the permissions that an access takes, and those that it denies to others.
func (a ImageAccess) permissions() (takes, denies uint64) {
	if a == ImageWrite {
		return permRead | permWrite, permWrite | permResize
	}
	return permRead, permWrite | permResize
}

func (a ImageAccess) String() string {
	if a == ImageWrite {
		return "writing"
	}
	return "reading"
}

// ImageLockError says which use of an image another process excludes.
type ImageLockError struct {
	Path string
	// Wanted is the access that was refused.
	Wanted ImageAccess
	// Writer: the lock is that of a process that writes to the image, or may; any process that may
	// read the file can take it. Otherwise it is that of a process that reads the image and lets no
	// other write.
	Writer bool
	// Holders are the processes that hold locks on the image, as "NAME (process PID)"; empty if
	// this user may not know them.
	Holders []string
}

func (e *ImageLockError) Error() string {
	holders := HoldersText(e.Holders)
	if e.Writer {
		return fmt.Sprintf("%s: expected that no process writes to the image, found that %s holds a lock on it, as a writer does (QEMU's image locks)", e.Path, holders)
	}
	return fmt.Sprintf("%s: expected that no other process uses the image, found that %s holds a lock on it, as a reader does that excludes writers (QEMU's image locks)", e.Path, holders)
}

// Unwrap makes errors.Is(err, ErrImageLocked) true.
func (e *ImageLockError) Unwrap() error { return ErrImageLocked }

// LockImage implements File. If the conversion of an earlier lock is refused, no lock is left.
func (f *osFile) LockImage(a ImageAccess) error {
	takes, denies := a.permissions()
	err := f.setImageLocks(takes, denies)
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
		// An exclusive lock on one of the bytes: QEMU takes none, and only a process that may write
		// to the file can take one.
		err = &ImageLockError{Path: f.name, Wanted: a, Writer: true, Holders: f.imageHolders()}
	}
	if err == nil && a != ImageForced {
		err = f.testImageLocks(a, takes, denies)
	}
	if err != nil {
		_ = f.setImageLocks(0, 0)
	}
	if noImageLocks(err) {
		return nil
	}
	return err
}

// noImageLocks reports whether a file system has no locks of this kind; QEMU ignores that too.
func noImageLocks(err error) bool {
	return errors.Is(err, unix.ENOLCK) || errors.Is(err, unix.ENOSYS) ||
		errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL)
}

// setImageLocks locks the bytes of the permissions and unlocks all others.
func (f *osFile) setImageLocks(takes, denies uint64) error {
	for _, half := range []struct {
		base int64
		set  uint64
	}{{lockPermBase, takes}, {lockShareBase, denies}} {
		if err := f.ofdLock(unix.F_UNLCK, half.base, lockBits, ^half.set); err != nil {
			return err
		}
		if err := f.ofdLock(unix.F_RDLCK, half.base, lockBits, half.set); err != nil {
			return err
		}
	}
	return nil
}

// ofdLock applies a kind of lock to base+n for each bit n of set, one call for each run of bits.
func (f *osFile) ofdLock(kind int16, base int64, width int, set uint64) error {
	for n := 0; n < width; {
		n += bits.TrailingZeros64(set >> n)
		if n >= width {
			return nil
		}
		run := min(bits.TrailingZeros64(^(set >> n)), width-n)
		f.ofdLocked.Store(true)
		if _, err := f.fcntlLock(unix.F_OFD_SETLK, kind, base+int64(n), int64(run)); err != nil {
			return f.fail("lock image", err)
		}
		n += run
	}
	return nil
}

// testImageLocks looks for locks of others that exclude an access: permissions that it denies, and
// denials of permissions that it takes.
func (f *osFile) testImageLocks(a ImageAccess, takes, denies uint64) error {
	for _, half := range []struct {
		base   int64
		set    uint64
		writer bool // a lock there is a writer's
	}{{lockPermBase, denies, true}, {lockShareBase, takes, false}} {
		for set := half.set; set != 0; set &= set - 1 {
			// A lock for writing conflicts with every lock of others.
			at := half.base + int64(bits.TrailingZeros64(set))
			found, err := f.fcntlLock(unix.F_OFD_GETLK, unix.F_WRLCK, at, 1)
			if err != nil {
				return f.fail("lock image", err)
			}
			if found != unix.F_UNLCK {
				writer := half.writer || a == ImageRead
				return &ImageLockError{f.name, a, writer, f.imageHolders()}
			}
		}
	}
	return nil
}
