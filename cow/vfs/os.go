package vfs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// OS is the file system of the machine.
type OS struct{}

var _ FS = OS{}

// OpenFile implements FS. Errors are *fs.PathError, or *DirectError for a file that refuses direct
// I/O.
func (OS) OpenFile(name string, flag int, perm fs.FileMode) (File, error) {
	f, err := open(name, flag&^Direct, perm)
	if err != nil {
		return nil, err
	}
	if flag&Direct == 0 || f.memory {
		return f, nil
	}
	d, err := openDirect(f, flag)
	if err != nil {
		f.Close()
		return nil, err
	}
	return d, nil
}

func open(name string, flag int, perm fs.FileMode) (*osFile, error) {
	fd, err := retryOpen(name, flag|unix.O_CLOEXEC, uint32(perm.Perm()))
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	f := &osFile{fd: fd, name: name}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return nil, &fs.PathError{Op: "stat", Path: name, Err: err}
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
	case unix.S_IFBLK:
		f.block = true
	default:
		unix.Close(fd)
		return nil, &fs.PathError{Op: "open", Path: name, Err: ErrNotFile}
	}
	f.memory = !f.block && inMemory(fd)
	return f, nil
}

// ErrNotFile is returned by OpenFile for a directory, a FIFO or another special file.
var ErrNotFile = errors.New("neither a regular file nor a block device")

func retryOpen(name string, flag int, perm uint32) (int, error) {
	for {
		// O_NONBLOCK keeps the open of a FIFO from blocking; it has no effect on the regular files
		// and block devices that are accepted.
		fd, err := unix.Open(name, flag|unix.O_NONBLOCK, perm)
		if err != unix.EINTR {
			return fd, err
		}
	}
}

// Rename implements FS.
func (OS) Rename(oldName, newName string) error { return os.Rename(oldName, newName) }

// Remove implements FS.
func (OS) Remove(name string) error { return os.Remove(name) }

// RemoveAll implements FS.
func (OS) RemoveAll(name string) error { return os.RemoveAll(name) }

// MkdirAll implements FS.
func (o OS) MkdirAll(name string, perm fs.FileMode) error {
	name = filepath.Clean(name)
	if st, err := os.Stat(name); err == nil {
		if !st.IsDir() {
			return &fs.PathError{Op: "mkdir", Path: name, Err: unix.ENOTDIR}
		}
		return nil
	}
	parent := filepath.Dir(name)
	if parent != name {
		if err := o.MkdirAll(parent, perm); err != nil {
			return err
		}
	}
	err := os.Mkdir(name, perm)
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if serr := o.SyncDir(parent); serr != nil {
		if err == nil {
			// A later MkdirAll that finds it would assume that it is durable.
			_ = os.Remove(name)
		}
		return serr
	}
	return nil
}

// Mkdir implements FS.
func (OS) Mkdir(name string, perm fs.FileMode) error { return os.Mkdir(name, perm) }

// SyncDir implements FS.
func (OS) SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("sync directory: %w", err)
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		// devtmpfs and a few others have no fsync of directories and nothing to make durable.
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) {
			return nil
		}
		return fmt.Errorf("sync directory: %w", err)
	}
	return nil
}

// ReadFile implements FS.
func (OS) ReadFile(name string) ([]byte, error) { return os.ReadFile(name) }

// WriteFileAtomic implements FS.
func (o OS) WriteFileAtomic(name string, data []byte, perm fs.FileMode) error {
	return WriteAtomic(o, name, data, perm)
}

// Stat implements FS.
func (OS) Stat(name string) (fs.FileInfo, error) { return os.Stat(name) }

// ReadDir implements FS.
func (OS) ReadDir(name string) ([]fs.DirEntry, error) { return os.ReadDir(name) }

// SomeNames implements FS.
func (OS) SomeNames(dir string, n int) ([]string, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	names, err := d.Readdirnames(n)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return names, err
}

// inMemory reports whether the file's content is memory only, so that no read waits for a device
// (unless the memory was swapped out). These file systems have neither RWF_NOWAIT nor a cache that
// direct I/O could bypass.
func inMemory(fd int) bool {
	var st unix.Statfs_t
	if err := ignoringEINTR(func() error { return unix.Fstatfs(fd, &st) }); err != nil {
		return false
	}
	switch int64(st.Type) {
	case unix.TMPFS_MAGIC, unix.RAMFS_MAGIC, unix.HUGETLBFS_MAGIC:
		return true
	}
	return false
}
