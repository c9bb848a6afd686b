package vfs

import (
	"errors"
	"io/fs"

	"golang.org/x/sys/unix"

	"cowblk/cow/pagecache"
)

// ErrLocked is returned by File.Lock when another open file description, in this or another
// process, holds a conflicting lock.
var ErrLocked = errors.New("locked by another user of the file")

// ErrWouldBlock is returned by File.PreadvNowait, not wrapped, when the first byte is not in
// memory: read it by a call that may block.
var ErrWouldBlock = errors.New("would have to wait for a device")

// MaxIovecs is the number of iovecs that one Preadv or Pwritev passes to the kernel (UIO_MAXIOV of
// Linux). Longer arrays are legal: the call is then short.
const MaxIovecs = 1024

// Direct is a flag of FS.OpenFile: reads and writes bypass the page cache (O_DIRECT) whenever
// memory, offset and length meet the file system's alignment, and use it otherwise. See DirectError
// for where that is refused. A file in memory (tmpfs) ignores it.
const Direct = unix.O_DIRECT

// Iovec is one piece of memory of a scatter list, in the kernel's layout.
type Iovec = unix.Iovec

// File is one open regular file or block device. All offsets and lengths are in bytes. Methods may
// be called concurrently, but not after or during Close.
type File interface {
	// Name returns the path that the file was opened with.
	Name() string

	// Preadv reads into iov from off and returns the number of bytes, which may be short; 0 with a
	// nil error means end of file. The memory of iov must stay valid until the call returns.
	Preadv(iov []Iovec, off int64) (int, error)
	// PreadvNowait is Preadv without waiting for a device: ErrWouldBlock, without an allocation,
	// when the first byte is not in memory; short where the resident part ends. A file in memory
	// (tmpfs) is always read. It always returns ErrWouldBlock where kernel or file system do not
	// support it, and for direct I/O.
	PreadvNowait(iov []Iovec, off int64) (int, error)
	// Pwritev writes iov at off and returns the number of bytes, which may be short.
	Pwritev(iov []Iovec, off int64) (int, error)
	// AsyncFD returns a descriptor on which an asynchronous engine may perform exactly this read or
	// write, or -1 when Preadv and Pwritev must be used: for a wrapper that must see the call, for
	// direct I/O that is not aligned, and for a file in memory, which never waits. The File owns
	// it: it is valid until Close and must not be closed or configured.
	AsyncFD(iov []Iovec, off int64) int
	// Map is pagecache.Map of the file. It returns pagecache.ErrNotMappable also for a wrapper and
	// for a file that is open for direct I/O.
	Map(length int64, written bool) (*pagecache.Mapping, error)

	// ReadAt fills p from off, or returns the number of bytes read and the reason (io.EOF at the
	// end of the file).
	ReadAt(p []byte, off int64) (int, error)
	// WriteAt writes all of p at off, or returns the number of bytes written and the reason.
	WriteAt(p []byte, off int64) (int, error)

	// PunchHole makes n bytes from off read as zeros without changing the file's size. It frees the
	// space where the file system or device can, and writes zeros where it cannot.
	PunchHole(off, n int64) error
	// Datasync makes everything written so far durable, with the metadata needed to read it
	// (fdatasync). It does not cover the file's directory entry: see FS.SyncDir.
	Datasync() error

	// Size returns the length of the regular file or the capacity of the device.
	Size() (int64, error)
	// Truncate sets the length of a regular file. A block device cannot be resized: the call
	// succeeds if n fits its capacity.
	Truncate(n int64) error
	// NextData returns the first range [start, end) at or after off that may hold data; the bytes
	// between off and start are zeros. io.EOF: only holes are left. Where holes cannot be found
	// (block devices, some file systems) it returns the whole rest of the file.
	NextData(off int64) (start, end int64, err error)

	// Lock takes an advisory lock on the open file without waiting, or converts the present one.
	// Close releases it. ErrLocked: refused.
	Lock(exclusive bool) error
	// LockRange locks n bytes (> 0) of the open file from off on, without waiting: exclusively for
	// a writer, which must have opened the file for writing, or shared for readers. The bytes need
	// not exist. A second call must be for the same range and converts the lock; from exclusive to
	// shared it always succeeds. It is independent of Lock. Close releases it. ErrLocked: another
	// open file description excludes it. Where the file system has no such locks it does nothing.
	// LockExtents also locks what a device lies on.
	LockRange(off, n int64, exclusive bool) error
	// LockImage locks the open file as QEMU locks a disk image, so that QEMU and this program, or
	// two of this program, exclude each other: see ImageAccess. It does not wait, replaces an image
	// lock of the File, and is independent of Lock. Close releases it. Where the file system has no
	// such locks it does nothing, as QEMU does. ErrImageLocked (an *ImageLockError): another
	// process excludes the access.
	LockImage(a ImageAccess) error
	// Identity identifies one state of one file.
	Identity() (Identity, error)
	// AdviseRandom tells the kernel not to read ahead.
	AdviseRandom() error
	// DropCache tells the kernel to drop the clean pages of the file: reads then return the content
	// of the device. Dirty pages stay.
	DropCache() error

	Close() error
}

// Identity is what a cheap check can know about a file: with the same identity the content is very
// probably the same. It is comparable.
type Identity struct {
	Dev   uint64 `json:"dev"`   // device of the file system; for a block device: its own number
	Inode uint64 `json:"inode"` // 0 for a block device
	Size  int64  `json:"size"`  // bytes
	MTime int64  `json:"mtime"` // nanoseconds since 1970; 0 for a block device, which has none
	Block bool   `json:"block"` // a block device
}

// SameFile reports whether two identities are of one file or device.
func (i Identity) SameFile(o Identity) bool {
	return i.Dev == o.Dev && i.Inode == o.Inode && i.Block == o.Block
}

// Version identifies one version of a file's content. It is comparable. Users cannot set the time
// of change (ctime).
type Version struct {
	Dev   uint64 `json:"dev"`
	Inode uint64 `json:"inode"`
	Size  int64  `json:"size"`  // bytes
	MTime int64  `json:"mtime"` // nanoseconds since 1970
	CTime int64  `json:"ctime"` // likewise
}

// FS is a tree of files.
type FS interface {
	// OpenFile opens or creates a file; flag as for os.OpenFile, and the open(2) flags of Linux.
	OpenFile(name string, flag int, perm fs.FileMode) (File, error)
	// Rename replaces newName atomically. Durable after SyncDir.
	Rename(oldName, newName string) error
	// Remove removes a file or an empty directory. Durable after SyncDir.
	Remove(name string) error
	// RemoveAll removes a tree; it is no error if there is none.
	RemoveAll(name string) error
	// MkdirAll creates a directory and its missing parents; their entries are durable when it
	// returns.
	MkdirAll(name string, perm fs.FileMode) error
	// Mkdir creates a directory in an existing one. Durable after SyncDir of the parent.
	// fs.ErrExist: the name exists.
	Mkdir(name string, perm fs.FileMode) error
	// SyncDir makes the entries of a directory durable.
	SyncDir(dir string) error

	ReadFile(name string) ([]byte, error)
	// WriteFileAtomic replaces the content of name so that a crash leaves the old or the new
	// content, whole. Durable when it returns.
	WriteFileAtomic(name string, data []byte, perm fs.FileMode) error
	// Stat follows symbolic links.
	Stat(name string) (fs.FileInfo, error)
	// Versions returns the versions of many files, as Stat sees them; nil for one that cannot be
	// determined. It takes few system calls where the kernel allows that.
	Versions(names []string) []*Version
	// ReadDir lists a directory, sorted by name.
	ReadDir(name string) ([]fs.DirEntry, error)
	// SomeNames returns names of a directory in no order: all of them if there are at most n, else
	// at least n.
	SomeNames(dir string, n int) ([]string, error)
}
