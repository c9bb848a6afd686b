package vfs

import (
	"errors"
	"io/fs"

	"golang.org/x/sys/unix"
)

// ErrLocked is returned by File.Lock when another open file description, in
// this or another process, holds a conflicting lock.
var ErrLocked = errors.New("locked by another user of the file")

// MaxIovecs is the number of iovecs one Preadv or Pwritev call passes on
// (UIO_MAXIOV of Linux). Longer arrays are legal: the call is then short.
const MaxIovecs = 1024

// Direct is a flag of FS.OpenFile: reads and writes go around the page cache
// (O_DIRECT) whenever memory, offset and length are aligned as the file system
// wants it, and through it otherwise. See DirectError for where that is
// refused. A file that lives in memory (tmpfs) ignores it.
const Direct = unix.O_DIRECT

// Iovec is one piece of memory of a scatter list, in the kernel's layout.
type Iovec = unix.Iovec

// File is one open regular file or block device. All offsets and lengths are
// in bytes. Every method may be called from several goroutines at once, but
// nothing may be called after or concurrently with Close.
type File interface {
	// Name is the path the file was opened with.
	Name() string

	// Preadv reads into iov from off and returns the number of bytes read,
	// which may be short; 0 with a nil error means end of file. The memory
	// that iov points to must stay valid until the call returns.
	Preadv(iov []Iovec, off int64) (int, error)
	// PreadvNowait is Preadv of what needs no waiting for a device:
	// ErrWouldBlock, without an allocation, when the first byte is not in
	// memory. It is short where memory ends. A file that lives in memory
	// (tmpfs) is read whatever the kernel offers; where the kernel or the
	// file system cannot tell, and for direct I/O, it is always ErrWouldBlock.
	PreadvNowait(iov []Iovec, off int64) (int, error)
	// Pwritev writes iov at off and returns the number of bytes written,
	// which may be short.
	Pwritev(iov []Iovec, off int64) (int, error)
	// AsyncFD is a descriptor on which an asynchronous engine may carry out
	// exactly this read or write, or -1 when it has to go through Preadv and
	// Pwritev: a wrapper that must see it, direct I/O that is not aligned, a
	// file in memory, which nobody has to wait for. It is the File's: valid
	// until Close, not to be closed or configured.
	AsyncFD(iov []Iovec, off int64) int
	// Map maps the first length bytes (> 0) for reading; the file may be
	// shorter. Close the Mapping before the file is of no use to anybody; it
	// does not need the File. ErrNotMappable for a wrapper, for a file open
	// for direct I/O, and where the kernel refuses: do without.
	Map(length int64) (*Mapping, error)

	// ReadAt fills p from off, or returns how much it read and why it
	// stopped (io.EOF at the end of the file).
	ReadAt(p []byte, off int64) (int, error)
	// WriteAt writes all of p at off, or returns how much it wrote and why
	// it stopped.
	WriteAt(p []byte, off int64) (int, error)

	// PunchHole makes n bytes from off read as zeros without changing the
	// file's size, giving the space back where the file system or device
	// can and writing zeros where it cannot.
	PunchHole(off, n int64) error
	// Datasync makes everything written so far durable, with the metadata
	// needed to read it back (fdatasync). It does not cover the file's
	// directory entry: see FS.SyncDir.
	Datasync() error

	// Size is the length of the regular file or the capacity of the device.
	Size() (int64, error)
	// Truncate sets the length of a regular file. A block device cannot be
	// resized: it is accepted when n fits its capacity.
	Truncate(n int64) error
	// NextData returns the first range [start, end) at or after off that may
	// hold data; what lies between off and start reads as zeros. io.EOF when
	// nothing but holes is left. Where holes cannot be found (block devices,
	// some file systems) it is the whole rest of the file.
	NextData(off int64) (start, end int64, err error)

	// Lock takes an advisory lock on the open file without waiting, or
	// converts the one it holds. Close drops it. ErrLocked when refused.
	Lock(exclusive bool) error
	// LockRange locks n bytes (> 0) of the open file from off on, without waiting:
	// for one writer, who must have opened the file for writing, or for any number of
	// readers. The bytes need not exist. A second call is for the same range, and
	// converts the lock; from a writer's to a reader's it always succeeds. It has
	// nothing to do with Lock. Close drops it. ErrLocked when another open file
	// description excludes it. Where the file system has no such locks it does
	// nothing. LockExtents also looks at what a device is a part of.
	LockRange(off, n int64, exclusive bool) error
	// LockImage locks the open file as QEMU locks a disk image, so that QEMU and
	// this program keep out of each other's way, and two of this program do: see
	// ImageAccess. It does not wait, replaces an image lock that the File has, and
	// has nothing to do with Lock. Close drops it. Where the file system has no such
	// locks it does nothing, as QEMU does. ErrImageLocked (an *ImageLockError) when
	// another opener excludes the access.
	LockImage(a ImageAccess) error
	// Identity tells one state of one file from another.
	Identity() (Identity, error)
	// AdviseRandom tells the kernel not to read ahead.
	AdviseRandom() error
	// DropCache tells the kernel to forget what it holds of the file and takes
	// for written: reads then show what the device has. What is still to be
	// written stays.
	DropCache() error

	Close() error
}

// Identity is what a cheap check can know about a file: same identity, very
// probably same content. It is comparable.
type Identity struct {
	Dev   uint64 `json:"dev"`   // device that holds the file; of a block device: its own number
	Inode uint64 `json:"inode"` // 0 for a block device
	Size  int64  `json:"size"`  // bytes
	MTime int64  `json:"mtime"` // nanoseconds since 1970; 0 for a block device, which keeps none of its content
	Block bool   `json:"block"` // a block device
}

// FS is a tree of files.
type FS interface {
	// OpenFile opens or creates a file; flag as for os.OpenFile, to which
	// the open(2) flags of Linux may be added.
	OpenFile(name string, flag int, perm fs.FileMode) (File, error)
	// Rename replaces newName atomically. Durable after SyncDir.
	Rename(oldName, newName string) error
	// Remove removes a file or an empty directory. Durable after SyncDir.
	Remove(name string) error
	// RemoveAll removes a tree; it is no error if there is none.
	RemoveAll(name string) error
	// MkdirAll creates a directory and its missing parents; their entries
	// are durable when it returns.
	MkdirAll(name string, perm fs.FileMode) error
	// Mkdir creates a directory, whose parent exists. Durable after SyncDir of the
	// parent. fs.ErrExist: something has the name.
	Mkdir(name string, perm fs.FileMode) error
	// SyncDir makes the entries of a directory durable.
	SyncDir(dir string) error

	ReadFile(name string) ([]byte, error)
	// WriteFileAtomic replaces the content of name so that after a crash
	// the old or the new content is there, whole; durable when it returns.
	WriteFileAtomic(name string, data []byte, perm fs.FileMode) error
	// Stat follows symbolic links.
	Stat(name string) (fs.FileInfo, error)
	// ReadDir lists a directory in the order of names.
	ReadDir(name string) ([]fs.DirEntry, error)
	// SomeNames returns names in a directory, in no order: all of them if there are
	// at most n, else n or more.
	SomeNames(dir string, n int) ([]string, error)
}
