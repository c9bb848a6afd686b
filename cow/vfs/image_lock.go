package vfs

import (
	"errors"
	"fmt"
	"io"
	"math/bits"

	"golang.org/x/sys/unix"
)

// ErrImageLocked is returned by File.LockImage when another open file description uses the image in a way that
// excludes this one: see ImageLockError.
var ErrImageLocked = errors.New("image is in use")

// ImageAccess is what an opener of a disk image does with it, and what it lets others do meanwhile.
type ImageAccess int

const (
	// ImageRead reads the image. Others may read it; nobody may write to it or change its length.
	ImageRead ImageAccess = iota + 1
	// ImageWrite reads and writes the image. Nobody else may write to it or change its length, nor read it as an
	// ImageRead, which wants content that stays.
	ImageWrite
	// ImageForced is ImageRead by somebody who has said that nobody writes: locks of others do not exclude it, and its
	// own ones keep out whoever comes later.
	ImageForced
)

// QEMU's permissions on a block node, as bits. QEMU, qemu-img and qemu-storage-daemon show them to each other by locks
// on single bytes of the image file (QEMU, block/file-posix.c; docs/system/images.rst, "Disk image file locking"):
// who has permission n holds byte lockPermBase+n, who does not let others have it holds byte lockShareBase+n. All these
// locks are shared ones, of an open file description (F_OFD_SETLK): they are taken first, then each side looks for a
// byte of the other that excludes it. The bytes need not exist in the file, and a descriptor for reading is enough.
const (
	permRead   = 1 << iota // BLK_PERM_CONSISTENT_READ
	permWrite              // BLK_PERM_WRITE
	_                      // BLK_PERM_WRITE_UNCHANGED
	permResize             // BLK_PERM_RESIZE

	lockPermBase  = 100 // RAW_LOCK_PERM_BASE
	lockShareBase = 200 // RAW_LOCK_SHARED_BASE
	lockBits      = 64  // width of a set of permissions
)

// permissions of an access: what it takes, and what it does not let others have.
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

// ImageLockError says which use of an image another opener excludes.
type ImageLockError struct {
	Path string
	// Wanted is the access that was refused.
	Wanted ImageAccess
	// Writer: the lock is one of who writes to the image, or may; but whoever may read the file can take it. Otherwise
	// it is one of who reads the image, and does not let others write.
	Writer bool
	// Holders are the processes that hold locks on the image, as "NAME (process PID)"; empty if this user may not know.
	Holders []string
}

func (e *ImageLockError) Error() string {
	who := HoldersText(e.Holders)
	if e.Writer {
		return fmt.Sprintf("%s: expected nobody to write to the image, found that %s holds a lock on it, as who writes to it does (QEMU's image locks)", e.Path, who)
	}
	return fmt.Sprintf("%s: expected nobody else to use the image, found that %s holds a lock on it, as who reads it and lets nobody write does (QEMU's image locks)", e.Path, who)
}

// Unwrap makes errors.Is(err, ErrImageLocked) true.
func (e *ImageLockError) Unwrap() error { return ErrImageLocked }

// LockImage implements File. A refused conversion of an earlier lock leaves none.
func (f *osFile) LockImage(a ImageAccess) error {
	takes, denies := a.permissions()
	err := f.setImageLocks(takes, denies)
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
		// An exclusive lock on one of the bytes: QEMU has none, and only who may write to the file can have one.
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

// noImageLocks reports whether a file system has no locks of this kind: QEMU does without them there, too.
func noImageLocks(err error) bool {
	return errors.Is(err, unix.ENOLCK) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL)
}

// setImageLocks locks the bytes of the permissions, and unlocks all others.
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

// ofdLock applies a kind of lock to base+n for each bit n of set, runs of bits in one call.
func (f *osFile) ofdLock(kind int16, base int64, width int, set uint64) error {
	for n := 0; n < width; {
		n += bits.TrailingZeros64(set >> n)
		if n >= width {
			return nil
		}
		run := min(bits.TrailingZeros64(^(set >> n)), width-n)
		f.ofdLocked.Store(true)
		lk := unix.Flock_t{Type: kind, Whence: io.SeekStart, Start: base + int64(n), Len: int64(run)}
		if err := ignoringEINTR(func() error { return unix.FcntlFlock(uintptr(f.fd), unix.F_OFD_SETLK, &lk) }); err != nil {
			return f.fail("lock image", err)
		}
		n += run
	}
	return nil
}

// testImageLocks looks for locks of others that exclude an access: on permissions that it denies, and against those
// that it takes.
func (f *osFile) testImageLocks(a ImageAccess, takes, denies uint64) error {
	for _, half := range []struct {
		base   int64
		set    uint64
		writer bool // a lock there is one of a writer
	}{{lockPermBase, denies, true}, {lockShareBase, takes, false}} {
		for set := half.set; set != 0; set &= set - 1 {
			// A lock for writing conflicts with each lock of others.
			lk := unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart, Start: half.base + int64(bits.TrailingZeros64(set)), Len: 1}
			if err := ignoringEINTR(func() error { return unix.FcntlFlock(uintptr(f.fd), unix.F_OFD_GETLK, &lk) }); err != nil {
				return f.fail("lock image", err)
			}
			if lk.Type != unix.F_UNLCK {
				return &ImageLockError{Path: f.name, Wanted: a, Writer: half.writer || a == ImageRead, Holders: f.imageHolders()}
			}
		}
	}
	return nil
}
