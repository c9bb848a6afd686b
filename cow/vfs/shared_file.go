package vfs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"cowblk/cow/way"
)

// ErrNotInMemory says that a file is on a file system with a device behind it: its content can be
// evicted, and reads and writes can fail.
var ErrNotInMemory = errors.New("not a file system in memory (tmpfs)")

// SharedFS is an FS with files in memory that outlive their process, until the kernel stops.
type SharedFS interface {
	FS
	// Boot returns the name of this run of the kernel. With another name, everything in memory is
	// gone.
	Boot() (string, error)
	// Instance returns the name of the mounted file system, or of the device, of f: another one
	// after it was unmounted and mounted again, when the page cache of f is gone. The name is the
	// same in every mount namespace. errors.ErrUnsupported: the kernel has no such name for it.
	Instance(f File) (string, error)
	// Changed returns the time of the last change of f's content or attributes, in nanoseconds
	// since 1970. It cannot be set (ctime), and after a write it equals the mtime of Identity. 0
	// where it is not kept so: for a block device, and where a server has a clock of its own.
	Changed(f File) (int64, error)
	// Evicted reports whether f's inode may have been evicted from memory before f was opened, and
	// with it its record of write-back errors: Datasync would not report them any more.
	Evicted(f File) (bool, error)
	// Resident reports whether the page cache has all of n bytes from off on: then nothing written
	// to them was lost.
	Resident(f File, off, n int64) (bool, error)
	// SyncFS writes back everything dirty on f's file system. It returns a write-back error of any
	// file on it that has not been reported yet.
	SyncFS(f File) error
	// MakeSharedDir creates a directory in memory, with its missing parents, that only this user
	// can change. ErrNotInMemory; also an error where it exists and belongs to another user.
	MakeSharedDir(dir string) error
	// OpenShared opens or creates a file in memory; flag as for os.OpenFile. A file elsewhere is
	// refused with ErrNotInMemory and not created.
	OpenShared(name string, flag int, perm fs.FileMode) (SharedFile, error)
}

// SharedFile is a file in memory that processes can map.
type SharedFile interface {
	File
	// Reserve allocates the memory of n bytes from off on, which keep their content: stores to them
	// through a mapping cannot fail for want of memory afterwards.
	Reserve(off, n int64) error
	// MapShared maps the first n words of 64 bits: the kernel has what is stored in them at once.
	// Words of a mapping without write must not be written.
	MapShared(n uint64, write bool) (*Shared, error)
}

// Shared is words shared by all processes that map the same file.
type Shared struct {
	Words []uint64
	unmap func() error
}

// NewShared makes a Shared, for other implementations of SharedFile; Close calls unmap.
func NewShared(words []uint64, unmap func() error) *Shared { return &Shared{words, unmap} }

// Close unmaps the words, which must not be used any more.
func (s *Shared) Close() error { return s.unmap() }

var _ SharedFS = OS{}

// bootName caches the result of Boot: it does not change, and a confined process cannot read it.
var bootName atomic.Pointer[string]

// Boot implements SharedFS.
func (OS) Boot() (string, error) {
	if known := bootName.Load(); known != nil {
		return *known, nil
	}
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("name of this run of the kernel: %w", err)
	}
	name := strings.TrimSpace(string(id))
	bootName.Store(&name)
	return name, nil
}

// Changed implements SharedFS.
func (OS) Changed(f File) (int64, error) {
	o, ok := f.(*osFile)
	if !ok {
		return 0, fmt.Errorf("time of change of %s: %w", f.Name(), errors.ErrUnsupported)
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(o.fd, &fs); err != nil {
		return 0, o.fail("statfs", err)
	}
	if o.block || !keepsTimes(int64(fs.Type)) {
		return 0, nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(o.fd, &st); err != nil {
		return 0, o.fail("stat", err)
	}
	return st.Ctim.Nano(), nil
}

// OpenShared implements SharedFS.
func (o OS) OpenShared(name string, flag int, perm fs.FileMode) (SharedFile, error) {
	if flag&os.O_CREATE != 0 {
		// Checked before the open: no file must be created elsewhere.
		if err := inMemoryDir(name); err != nil {
			return nil, err
		}
	}
	// A FIFO in its place must not block this process.
	f, err := open(name, flag|unix.O_NOFOLLOW|unix.O_NONBLOCK, perm)
	if err != nil {
		return nil, err
	}
	if !f.memory {
		f.Close()
		return nil, &fs.PathError{Op: "open", Path: name, Err: ErrNotInMemory}
	}
	if err := checkOwner(f.fd); err != nil {
		f.Close()
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	return f, nil
}

// checkOwner refuses anything but a regular file of this user or root: the directory may be one in
// which every user can create files.
func checkOwner(fd int) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Uid != 0 && int(st.Uid) != os.Geteuid() ||
		st.Mode&0o022 != 0 {
		return fmt.Errorf("expected a regular file of user %d or root that nobody else may write to, found mode %#o of user %d", os.Geteuid(), st.Mode, st.Uid)
	}
	return nil
}

// keepsTimes reports whether a file system sets the times of its files itself.
func keepsTimes(fsType int64) bool {
	switch fsType {
	case unix.EXT4_SUPER_MAGIC, unix.XFS_SUPER_MAGIC, unix.BTRFS_SUPER_MAGIC, unix.F2FS_SUPER_MAGIC,
		unix.TMPFS_MAGIC, unix.OVERLAYFS_SUPER_MAGIC:
		return true
	}
	return false
}

// Evicted implements SharedFS: an inode with pages in the page cache (cachestat, Linux 6.5) has
// stayed in memory. The kernel keeps inode and errors of a block device.
func (OS) Evicted(f File) (bool, error) {
	o, ok := f.(*osFile)
	if !ok {
		return false, fmt.Errorf("page cache of %s: %w", f.Name(), errors.ErrUnsupported)
	}
	if o.memory || o.block {
		return false, nil
	}
	some, err := o.hasPages()
	switch {
	case cachestatUnavailable(err):
		return true, nil
	case err != nil:
		return false, o.fail("cachestat", err)
	}
	return !some, nil
}

// firstPages is the length of the first range that hasPages tests, in bytes.
const firstPages = 64 << 10

// hasPages reports whether any page of the file is in the page cache. cachestat walks over all
// pages of its range, which takes a second for two million scattered pages. One page is enough
// here, so the ranges double until one has any; the first begins where the file's data does.
func (f *osFile) hasPages() (bool, error) {
	size, err := f.Size()
	if err != nil {
		return false, err
	}
	data, err := unix.Seek(f.fd, 0, unix.SEEK_DATA)
	if err != nil {
		data = 0 // there is none, or the file system does not tell
	}
	for off, n := data, int64(firstPages); ; off, n = off+n, 2*n {
		last := n >= size-off
		r := unix.CachestatRange{Off: uint64(off), Len: uint64(n)}
		if last {
			r.Len = 0 // to the end
		}
		if pages, err := f.cached(&r); pages > 0 || err != nil {
			return pages > 0, err
		}
		if last {
			break
		}
	}
	if data == 0 {
		return false, nil
	}
	pages, err := f.cached(&unix.CachestatRange{Len: uint64(data)}) // holes that were read
	return pages > 0, err
}

// cached returns the number of pages of a range in the page cache.
func (f *osFile) cached(r *unix.CachestatRange) (pages uint64, err error) {
	var st unix.Cachestat_t
	err = unix.Cachestat(uint(f.fd), r, &st, 0)
	return st.Cache, err
}

// Resident implements SharedFS.
func (OS) Resident(f File, off, n int64) (bool, error) {
	o, ok := f.(*osFile)
	if !ok {
		return false, fmt.Errorf("page cache of %s: %w", f.Name(), errors.ErrUnsupported)
	}
	if o.memory {
		return true, nil
	}
	page := int64(os.Getpagesize())
	first, end := off/page, (off+n+page-1)/page
	pages, err := o.cached(&unix.CachestatRange{Off: uint64(first * page),
		Len: uint64((end - first) * page)})
	switch {
	case cachestatUnavailable(err):
		return false, nil
	case err != nil:
		return false, o.fail("cachestat", err)
	}
	return pages >= uint64(end-first), nil
}

// cachestatUnavailable reports whether an error of cachestat says that it cannot be used: an older
// kernel, or a filter of system calls.
func cachestatUnavailable(err error) bool {
	return errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EOPNOTSUPP) ||
		errors.Is(err, unix.EPERM)
}

// SyncFS implements SharedFS.
func (OS) SyncFS(f File) error {
	o, ok := f.(*osFile)
	if !ok {
		return fmt.Errorf("syncfs %s: %w", f.Name(), errors.ErrUnsupported)
	}
	if err := ignoringEINTR(func() error { return unix.Syncfs(o.fd) }); err != nil {
		return o.fail("syncfs", err)
	}
	return nil
}

// MakeSharedDir implements SharedFS.
func (OS) MakeSharedDir(dir string) error {
	// Checked on the lowest existing directory, before anything is created.
	for there := dir; ; there = filepath.Dir(there) {
		err := inMemoryDir(there + "/")
		if err == nil {
			break
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o711); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil {
		return &fs.PathError{Op: "lstat", Path: dir, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR || int(st.Uid) != os.Geteuid() || st.Mode&0o022 != 0 {
		return &fs.PathError{Op: "use", Path: dir,
			Err: fmt.Errorf("expected a directory of user %d that nobody else may write to, found mode %#o of user %d", os.Geteuid(), st.Mode, st.Uid)}
	}
	weak, err := way.Check(dir, way.Options{Group: os.Geteuid() != 0})
	if weak != nil {
		return &fs.PathError{Op: "use", Path: dir,
			Err: fmt.Errorf("%s can put another directory in its place: %s", weak.WhoCanChange(),
				weak)}
	}
	return err
}

func inMemoryDir(name string) error {
	dir := name[:strings.LastIndexByte(name, '/')+1]
	fd, err := retryOpen(dir+".", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &fs.PathError{Op: "open", Path: dir, Err: err}
	}
	defer unix.Close(fd)
	if !inMemory(fd) {
		return &fs.PathError{Op: "open", Path: dir, Err: ErrNotInMemory}
	}
	return nil
}

var _ SharedFile = (*osFile)(nil)

// Reserve implements SharedFile.
func (f *osFile) Reserve(off, n int64) error {
	err := ignoringEINTR(func() error { return unix.Fallocate(f.fd, 0, off, n) })
	if err == nil || !errors.Is(err, unix.EOPNOTSUPP) {
		if err != nil {
			err = f.fail("fallocate", err)
		}
		return err
	}
	// ramfs has no fallocate, and no limit that a page could exceed.
	p := make([]byte, n)
	done, err := f.ReadAt(p, off)
	if err != nil && done == 0 {
		clear(p)
	}
	_, err = f.WriteAt(p, off)
	return err
}

// MapShared implements SharedFile.
func (f *osFile) MapShared(n uint64, write bool) (*Shared, error) {
	prot := unix.PROT_READ
	if write {
		prot |= unix.PROT_WRITE
	}
	mem, err := unix.Mmap(f.fd, 0, int(n*8), prot, unix.MAP_SHARED)
	if err != nil {
		return nil, f.fail("mmap", err)
	}
	return NewShared(asWords(mem), func() error { return unix.Munmap(mem) }), nil
}
