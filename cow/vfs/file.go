package vfs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"cowblk/cow/pagecache"
)

// osFile is a descriptor outside Go's poller: its calls run on the calling goroutine's thread and
// may block it.
type osFile struct {
	fd     int
	name   string
	block  bool // block device
	memory bool // see inMemory
	// RWF_NOWAIT was refused by the kernel (before 4.14) or the file system.
	nowaitRefused atomic.Bool
	// Whether the file has ever had a lock of this kind: see unlock.
	flocked, ofdLocked atomic.Bool
}

func (f *osFile) Name() string { return f.name }

func (f *osFile) fail(op string, err error) error {
	return &fs.PathError{Op: op, Path: f.name, Err: err}
}

func (f *osFile) ReadAt(p []byte, off int64) (int, error) {
	done := 0
	for done < len(p) {
		n, err := unix.Pread(f.fd, p[done:], off+int64(done))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return done, f.fail("read", err)
		}
		if n == 0 {
			return done, io.EOF
		}
		done += n
	}
	return done, nil
}

func (f *osFile) WriteAt(p []byte, off int64) (int, error) {
	done := 0
	for done < len(p) {
		n, err := unix.Pwrite(f.fd, p[done:], off+int64(done))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return done, f.fail("write", err)
		}
		if n == 0 {
			return done, f.fail("write", io.ErrShortWrite)
		}
		done += n
	}
	return done, nil
}

func (f *osFile) PunchHole(off, n int64) error {
	if n == 0 {
		return nil
	}
	// On a block device this is a write-zeroes with unmap (Linux 4.9).
	err := ignoringEINTR(func() error {
		return unix.Fallocate(f.fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	})
	switch {
	case err == nil:
		return nil
	case err == unix.EOPNOTSUPP, err == unix.ENOSYS, err == unix.EINVAL && f.block:
		return f.writeZeros(off, n)
	default:
		return f.fail("punch hole", err)
	}
}

// writeZeros overwrites a range with zeros, up to the end of the file: punching a hole would not
// have extended it.
func (f *osFile) writeZeros(off, n int64) error {
	size, err := f.Size()
	if err != nil {
		return err
	}
	zeros := make([]byte, min(n, 1<<20))
	for end := min(off+n, size); off < end; {
		done, err := f.WriteAt(zeros[:min(end-off, int64(len(zeros)))], off)
		if err != nil {
			return err
		}
		off += int64(done)
	}
	return nil
}

func (f *osFile) Datasync() error {
	if err := ignoringEINTR(func() error { return unix.Fdatasync(f.fd) }); err != nil {
		return f.fail("fdatasync", err)
	}
	return nil
}

func (f *osFile) Size() (int64, error) {
	if f.block {
		n, err := unix.IoctlGetInt(f.fd, unix.BLKGETSIZE64)
		if err != nil {
			return 0, f.fail("BLKGETSIZE64", err)
		}
		return int64(n), nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(f.fd, &st); err != nil {
		return 0, f.fail("stat", err)
	}
	return st.Size, nil
}

func (f *osFile) Truncate(n int64) error {
	if f.block {
		size, err := f.Size()
		if err != nil {
			return err
		}
		if n > size {
			return f.fail("truncate", fmt.Errorf("need %d bytes, the device has %d: %w", n, size,
				unix.ENOSPC))
		}
		return nil
	}
	if err := ignoringEINTR(func() error { return unix.Ftruncate(f.fd, n) }); err != nil {
		return f.fail("truncate", err)
	}
	return nil
}

// NextData moves the descriptor's file position, which nothing else uses.
func (f *osFile) NextData(off int64) (start, end int64, err error) {
	size, err := f.Size()
	if err != nil {
		return 0, 0, err
	}
	if off >= size {
		return 0, 0, io.EOF
	}
	if f.block {
		return off, size, nil
	}
	start, err = unix.Seek(f.fd, off, unix.SEEK_DATA)
	switch err {
	case nil:
	case unix.ENXIO:
		return 0, 0, io.EOF
	case unix.EINVAL, unix.EOPNOTSUPP, unix.ENOSYS:
		return off, size, nil
	default:
		return 0, 0, f.fail("seek data", err)
	}
	end, err = unix.Seek(f.fd, start, unix.SEEK_HOLE)
	if err != nil {
		return 0, 0, f.fail("seek hole", err)
	}
	return start, end, nil
}

func (f *osFile) Lock(exclusive bool) error {
	how := unix.LOCK_SH
	if exclusive {
		how = unix.LOCK_EX
	}
	f.flocked.Store(true)
	err := ignoringEINTR(func() error { return unix.Flock(f.fd, how|unix.LOCK_NB) })
	if err == unix.EWOULDBLOCK {
		return f.fail("lock", ErrLocked)
	}
	if err != nil {
		return f.fail("lock", err)
	}
	return nil
}

func (f *osFile) Identity() (Identity, error) {
	var st unix.Stat_t
	if err := unix.Fstat(f.fd, &st); err != nil {
		return Identity{}, f.fail("stat", err)
	}
	if f.block {
		size, err := f.Size()
		return Identity{Dev: uint64(st.Rdev), Size: size, Block: true}, err
	}
	return Identity{Dev: uint64(st.Dev), Inode: st.Ino, Size: st.Size, MTime: st.Mtim.Nano()}, nil
}

func (f *osFile) AdviseRandom() error { return f.advise(unix.FADV_RANDOM) }

func (f *osFile) DropCache() error { return f.advise(unix.FADV_DONTNEED) }

// advise gives advice about the whole file.
func (f *osFile) advise(what int) error {
	err := unix.Fadvise(f.fd, 0, 0, what)
	// Refused advice is no failure.
	if err != nil && !errors.Is(err, unix.ENOSYS) && !errors.Is(err, unix.EINVAL) {
		return f.fail("fadvise", err)
	}
	return nil
}

// Close must not be retried on EINTR: Linux has released the descriptor.
func (f *osFile) Close() error {
	f.unlock()
	if err := unix.Close(f.fd); err != nil && err != unix.EINTR {
		return f.fail("close", err)
	}
	return nil
}

// unlock releases all locks. close(2) does not: a lock belongs to the open file description, which
// a forked child shares until it executes its program.
func (f *osFile) unlock() {
	if f.flocked.Load() {
		_ = unix.Flock(f.fd, unix.LOCK_UN)
	}
	if f.ofdLocked.Load() {
		_, _ = f.fcntlLock(unix.F_OFD_SETLK, unix.F_UNLCK, 0, 0)
	}
}

func ignoringEINTR(call func() error) error {
	for {
		if err := call(); err != unix.EINTR {
			return err
		}
	}
}

// Map implements File.
func (f *osFile) Map(length int64, written bool) (*pagecache.Mapping, error) {
	m, err := pagecache.Map(f.fd, length, written)
	if err != nil {
		return nil, f.fail("map", err)
	}
	return m, nil
}
