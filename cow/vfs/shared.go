package vfs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Survivor is an FS with files whose content in memory outlives the process that
// has put it there, until the machine stops. Its files are SharedFiles.
type Survivor interface {
	FS
	// Boot names this run of the machine. What its memory held is gone once the
	// name is another.
	Boot() (string, error)
	// Names reports whether name, itself and not what a link there leads to, is the
	// file of that device and inode. It opens nothing: a confined process may ask
	// about what it must not open.
	Names(name string, id Identity) (bool, error)
}

// SharedFile is a File that processes can have as memory.
type SharedFile interface {
	File
	// Reserve makes the file n zero bytes whose space is taken: a fault on a
	// mapping for want of space would be fatal.
	Reserve(n int64) error
	// MapShared maps n words of 64 bits from byte off on, a multiple of the page
	// size: what is stored in them is the machine's at once. Words of a mapping
	// that is not for writing must not be written.
	MapShared(off int64, n uint64, write bool) (*Shared, error)
}

// Shared is words that everybody shares who maps the same file.
type Shared struct {
	Words []uint64
	unmap func() error
}

// NewShared is for other implementations of SharedFile; unmap is called by Close.
func NewShared(words []uint64, unmap func() error) *Shared { return &Shared{words, unmap} }

// Close ends the mapping. Nobody may use the words any more.
func (s *Shared) Close() error { return s.unmap() }

var _ Survivor = OS{}

// Boot implements Survivor.
func (OS) Boot() (string, error) {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("name of this run of the kernel: %w", err)
	}
	return strings.TrimSpace(string(id)), nil
}

// Names implements Survivor.
func (OS) Names(name string, id Identity) (bool, error) {
	var st unix.Stat_t
	if err := unix.Lstat(name, &st); err != nil {
		return false, &fs.PathError{Op: "lstat", Path: name, Err: err}
	}
	return uint64(st.Dev) == id.Dev && st.Ino == id.Inode && !id.Block, nil
}

var _ SharedFile = (*osFile)(nil)

// Reserve implements SharedFile.
func (f *osFile) Reserve(n int64) error {
	if err := f.Truncate(0); err != nil {
		return err
	}
	switch err := unix.Fallocate(f.fd, 0, 0, n); {
	case err == nil:
		return nil
	case !errors.Is(err, unix.EOPNOTSUPP):
		return f.fail("fallocate", err)
	}
	zeros := make([]byte, 1<<20)
	for off := int64(0); off < n; off += int64(len(zeros)) {
		if _, err := f.WriteAt(zeros[:min(n-off, int64(len(zeros)))], off); err != nil {
			return err
		}
	}
	return nil
}

// MapShared implements SharedFile.
func (f *osFile) MapShared(off int64, n uint64, write bool) (*Shared, error) {
	prot := unix.PROT_READ
	if write {
		prot |= unix.PROT_WRITE
	}
	mem, err := unix.Mmap(f.fd, off, int(n*8), prot, unix.MAP_SHARED)
	if err != nil {
		return nil, f.fail("mmap", err)
	}
	return NewShared(asWords(mem), func() error { return unix.Munmap(mem) }), nil
}
