package vfs

import (
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// rangeLockBase is the offset of the locks of LockRange: byte n of a file is locked at
// rangeLockBase + n. No file is as long, so they do not meet the locks of other programs on bytes
// of disk images, such as QEMU's on bytes 100 to 263. The largest offset is rangeLockBase + 2^60 +
// 2^60.
const rangeLockBase = 1 << 62

// LockRange implements File.
func (f *osFile) LockRange(off, n int64, exclusive bool) error {
	kind := int16(unix.F_RDLCK)
	if exclusive {
		kind = unix.F_WRLCK
	}
	f.ofdLocked.Store(true)
	switch _, err := f.fcntlLock(unix.F_OFD_SETLK, kind, rangeLockBase+off, n); err {
	case unix.EAGAIN, unix.EACCES:
		return f.fail("lock a range", ErrLocked)
	case nil, unix.ENOLCK, unix.ENOSYS, unix.EOPNOTSUPP, unix.EINVAL, unix.EOVERFLOW:
		return nil // or the file system has no such locks, or shorter offsets
	default:
		return f.fail("lock a range", err)
	}
}

// fcntlLock sets or tests (cmd) a lock of the open file description on n bytes from off on; n is 0:
// to the end of all offsets. A test returns the kind of a lock that excludes it, or F_UNLCK.
func (f *osFile) fcntlLock(cmd int, kind int16, off, n int64) (found int16, err error) {
	lk := unix.Flock_t{Type: kind, Whence: io.SeekStart, Start: off, Len: n}
	err = ignoringEINTR(func() error { return unix.FcntlFlock(uintptr(f.fd), cmd, &lk) })
	return lk.Type, err
}

// RangeLock is a lock on bytes of one file, and on the same bytes of what the file lies on: see
// LockExtents.
type RangeLock struct {
	locked []lockedExtent
}

type lockedExtent struct {
	file   File
	off, n int64
	lower  bool // opened for the lock alone
}

// LockExtents locks n bytes (> 0) of an open file from off on, without waiting: exclusively for a
// writer, which must have opened it for writing, or shared for readers. Where f is a partition or a
// loop device, the same bytes of the disk or file below are locked too, if this user may open it.
// ErrLocked (in an *fs.PathError that names the file): another process holds a conflicting lock.
// Close releases the locks below; the lock on f ends with f.
func LockExtents(fsys FS, f File, off, n int64, exclusive bool) (*RangeLock, error) {
	l := new(RangeLock)
	if err := f.LockRange(off, n, exclusive); err != nil {
		return nil, err
	}
	l.locked = append(l.locked, lockedExtent{f, off, n, false})
	sfs, ok := fsys.(StackedFS)
	if !ok {
		return l, nil
	}
	if _, ok := sfs.Lower(f); !ok {
		return l, nil
	}
	extents, err := extentsOf(fsys, f, off, n)
	if err != nil {
		return nil, err
	}
	flag := os.O_RDONLY
	if exclusive {
		flag = os.O_RDWR
	}
	for _, e := range extents[1:] {
		lower := openExtent(fsys, e, flag)
		if lower == nil {
			continue
		}
		// A process that serves the file of a loop device itself holds only a lock of this kind.
		if err := errors.Join(lower.Lock(false), lower.LockRange(e.Start, e.End-e.Start,
			exclusive)); err != nil {
			return nil, errors.Join(err, lower.Close(), l.Close())
		}
		l.locked = append(l.locked, lockedExtent{lower, e.Start, e.End - e.Start, true})
	}
	return l, nil
}

// openExtent opens the file of an extent. It returns nil if another file is in its place or this
// user may not open it.
func openExtent(fsys FS, e Extent, flag int) File {
	if e.Path == "" {
		return nil
	}
	f, err := fsys.OpenFile(e.Path, flag, 0)
	if err != nil {
		return nil
	}
	if id, err := f.Identity(); err != nil || (Inode{id.Dev, id.Inode, id.Block}) != e.Inode {
		f.Close()
		return nil
	}
	return f
}

// Attach returns f, the locked file, as a File whose Close releases the whole lock.
func (l *RangeLock) Attach(f File) File {
	if len(l.locked) < 2 {
		return f // nothing below it
	}
	return &attached{f, l}
}

type attached struct {
	File
	lock *RangeLock
}

func (a *attached) Close() error { return errors.Join(a.lock.Close(), a.File.Close()) }

// Share converts the lock of a writer into that of a reader; no other process can lock in between.
func (l *RangeLock) Share() error {
	if l == nil {
		return nil
	}
	var errs []error
	for _, e := range l.locked {
		errs = append(errs, e.file.LockRange(e.off, e.n, false))
	}
	return errors.Join(errs...)
}

// Close releases the locks on what lies below the file. It may be called on nil.
func (l *RangeLock) Close() error {
	if l == nil {
		return nil
	}
	var errs []error
	for _, e := range l.locked {
		if e.lower {
			errs = append(errs, e.file.Close())
		}
	}
	l.locked = nil
	return errors.Join(errs...)
}
