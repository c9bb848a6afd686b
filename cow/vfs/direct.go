package vfs

import (
	"errors"
	"fmt"
	"io/fs"

	"golang.org/x/sys/unix"

	"cowblk/cow/pagecache"
)

// ErrNoDirect is wrapped by DirectError.
var ErrNoDirect = errors.New("no direct I/O")

// DirectError says that a file cannot be opened with Direct.
type DirectError struct {
	Path string
	Err  error // the kernel's unix.Errno or another reason; nil: the file system has none for it
}

func (e *DirectError) Error() string {
	found := "its file system offers none for this file"
	if errno, is := e.Err.(unix.Errno); is {
		found = "the kernel answered: " + errno.Error()
	} else if e.Err != nil {
		found = e.Err.Error()
	}
	return fmt.Sprintf("open %s: expected a file that takes direct I/O (O_DIRECT), but %s; "+
		"use the page cache instead, or move the file to a file system that has direct I/O (ext4, xfs) or to a block device", e.Path, found)
}

// Unwrap returns ErrNoDirect and the kernel's error.
func (e *DirectError) Unwrap() []error { return []error{ErrNoDirect, e.Err} }

// directFile is a file open twice: with O_DIRECT for all vectored I/O of whole blocks, and without
// for everything else.
//
// The kernel keeps the two coherent for I/O that does not run at the same time: a direct read first
// writes back what is dirty in its range; a direct write does so too and drops the range from the
// cache before and after it. A read during a write is safe as well: it finds old or new content,
// and what it has brought into the cache is dropped before the direct write ends. A buffered write
// during a direct write in the same page is not safe: the page may come into the cache with the old
// content of the sectors being written, and be written back whole. So vectored writes are all
// direct, from unaligned memory through a copy (see bounce.go), and buffered writes (WriteAt, for
// headers) must not share a page with them.
//
// Both descriptors are of one inode: a Datasync of either covers both.
type directFile struct {
	*osFile         // the buffered descriptor; locks are on this one
	dfd     int     // the direct one
	memory  uintptr // alignment of memory, bytes, a power of two
	offset  uintptr // alignment of offset and lengths
	bounces bouncePool
}

// sector is the unit of a guest's requests, in bytes. Where direct I/O needs larger units, a sector
// could only be written by reading, changing and writing back its neighbours, which loses one of
// two concurrent writes; such files are refused.
const sector = 512

// fallbackAlign is the alignment of direct I/O of a regular file, in bytes, when the kernel does
// not report one: no file system in use needs more.
const fallbackAlign = 4096

// openDirect adds a direct descriptor to f. On success it owns f.
func openDirect(f *osFile, flag int) (*directFile, error) {
	// The first open has created, truncated or claimed the file.
	fd, err := retryOpen(f.name,
		flag&^(unix.O_CREAT|unix.O_EXCL|unix.O_TRUNC)|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err == unix.EINVAL || err == unix.EOPNOTSUPP {
		return nil, &DirectError{Path: f.name, Err: err}
	}
	if err != nil {
		return nil, f.fail("open for direct I/O", err)
	}
	d := &directFile{osFile: f, dfd: fd}
	if err := d.probe(); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return d, nil
}

// probe determines the alignment and checks that both descriptors are of one file.
func (d *directFile) probe() error {
	var a, b unix.Stat_t
	if err := unix.Fstat(d.osFile.fd, &a); err != nil {
		return d.fail("stat", err)
	}
	if err := unix.Fstat(d.dfd, &b); err != nil {
		return d.fail("stat", err)
	}
	if a.Dev != b.Dev || a.Ino != b.Ino || a.Rdev != b.Rdev {
		return d.fail("open for direct I/O", errReplaced)
	}
	d.memory, d.offset = fallbackAlign, fallbackAlign
	var st unix.Statx_t
	err := ignoringEINTR(func() error {
		return unix.Statx(d.dfd, "", unix.AT_EMPTY_PATH, unix.STATX_DIOALIGN, &st)
	})
	switch {
	case err == nil && st.Mask&unix.STATX_DIOALIGN != 0:
		if st.Dio_mem_align == 0 || st.Dio_offset_align == 0 {
			return &DirectError{Path: d.name}
		}
		d.memory, d.offset = uintptr(st.Dio_mem_align), uintptr(st.Dio_offset_align)
	case d.block: // before Linux 6.1
		n, err := unix.IoctlGetInt(d.dfd, unix.BLKSSZGET)
		if err != nil {
			return d.fail("BLKSSZGET", err)
		}
		d.memory, d.offset = uintptr(n), uintptr(n)
	}
	if d.offset > sector {
		return &DirectError{Path: d.name,
			Err: fmt.Errorf("direct I/O has units of %d bytes there, and a guest has sectors of %d",
				d.offset, sector)}
	}
	return nil
}

var errReplaced = fmt.Errorf("another file has taken its place; try again: %w", fs.ErrNotExist)

// Preadv implements File.
func (d *directFile) Preadv(iov []Iovec, off int64) (int, error) {
	if d.aligned(iov, off) {
		n, errno := vectored(unix.SYS_PREADV, d.dfd, iov, off, 0)
		if errno != unix.EINVAL {
			return d.result("read", n, errno)
		}
	} else if d.bounceable(iov, off) {
		return d.readBounced(iov, off)
	}
	return d.osFile.Preadv(iov, off)
}

// Pwritev implements File.
func (d *directFile) Pwritev(iov []Iovec, off int64) (int, error) {
	if d.aligned(iov, off) {
		n, errno := vectored(unix.SYS_PWRITEV, d.dfd, iov, off, 0)
		if errno != unix.EINVAL {
			return d.result("write", n, errno)
		}
	} else if d.bounceable(iov, off) {
		return d.writeBounced(iov, off)
	}
	return d.osFile.Pwritev(iov, off)
}

func (d *directFile) result(op string, n int, errno unix.Errno) (int, error) {
	if errno != 0 {
		return 0, d.fail(op, errno)
	}
	return n, nil
}

// PreadvNowait implements File: a direct read always waits for the device.
func (d *directFile) PreadvNowait(iov []Iovec, off int64) (int, error) {
	if d.aligned(iov, off) || d.bounceable(iov, off) {
		return 0, ErrWouldBlock
	}
	return d.osFile.PreadvNowait(iov, off)
}

// AsyncFD implements File.
func (d *directFile) AsyncFD(iov []Iovec, off int64) int {
	if d.aligned(iov, off) {
		return d.dfd
	}
	return -1
}

// Map implements File: a mapping would fill the page cache.
func (d *directFile) Map(int64, bool) (*pagecache.Mapping, error) {
	return nil, d.fail("map", pagecache.ErrNotMappable)
}

// Close implements File.
func (d *directFile) Close() error {
	d.bounces.close()
	err := unix.Close(d.dfd)
	if e := d.osFile.Close(); e != nil {
		return e
	}
	if err != nil && err != unix.EINTR {
		return d.fail("close", err)
	}
	return nil
}
