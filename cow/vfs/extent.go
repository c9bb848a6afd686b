package vfs

import (
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Inode identifies a file, independent of its names. It is comparable.
type Inode struct {
	Dev   uint64 // device of the file system; for a block device: its own number
	Inode uint64 // 0 for a block device
	Block bool   // a block device
}

// Extent is a range of bytes of one file or block device.
type Extent struct {
	Inode
	Start, End int64
	// Path is a path of the file, if known; otherwise empty.
	Path string
}

// Overlaps reports whether the extents have a byte in common.
func (e Extent) Overlaps(o Extent) bool {
	return e.Inode == o.Inode && e.Start < o.End && o.Start < e.End
}

// StackedFS is an FS that knows what a block device lies on.
type StackedFS interface {
	FS
	// Lower returns the extent below an open block device: of the whole disk for a partition, of
	// the backing file for a loop device. False: f is no such device, or its parts are unknown
	// (device-mapper, md).
	Lower(f File) (Extent, bool)
}

// maxLower bounds the number of devices stacked on each other: a partition of a loop device of a
// file on ...
const maxLower = 16

// Extents returns n bytes from off of the file at path as extents: of the file itself, then of what
// it lies on, from the top down. n < 0: the whole file. It opens block devices only.
func Extents(fsys FS, path string, off, n int64) ([]Extent, error) {
	st, err := fsys.Stat(path)
	if err != nil {
		return nil, err
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	if ok && st.Mode().IsRegular() {
		return []Extent{newExtent(Inode{Dev: sys.Dev, Inode: sys.Ino}, off, n, path)}, nil
	}
	f, err := fsys.OpenFile(path, os.O_RDONLY, 0)
	if err != nil {
		if ok && st.Mode()&fs.ModeDevice != 0 {
			// This user may know no more.
			return []Extent{newExtent(Inode{Dev: sys.Rdev, Block: true}, off, n, path)}, nil
		}
		return nil, err
	}
	defer f.Close()
	return extentsOf(fsys, f, off, n)
}

// newExtent returns n bytes from off of a file; n < 0: the whole file.
func newExtent(i Inode, off, n int64, path string) Extent {
	e := Extent{Inode: i, Start: off, End: off + n, Path: path}
	if n < 0 {
		e.End = math.MaxInt64
	}
	return e
}

func extentsOf(fsys FS, f File, off, n int64) ([]Extent, error) {
	id, err := f.Identity()
	if err != nil {
		return nil, err
	}
	all := []Extent{newExtent(Inode{id.Dev, id.Inode, id.Block}, off, n, f.Name())}
	sfs, ok := fsys.(StackedFS)
	if !ok || !id.Block {
		return all, nil
	}
	var opened File
	defer func() {
		if opened != nil {
			opened.Close()
		}
	}()
	for cur := f; len(all) < maxLower; {
		below, ok := sfs.Lower(cur)
		if !ok {
			break
		}
		above := all[len(all)-1]
		size := below.End - below.Start
		start := below.Start
		below.Start, below.End = start+min(above.Start, size), start+min(above.End, size)
		all = append(all, below)
		next := openExtent(fsys, below, os.O_RDONLY)
		if opened != nil {
			opened.Close()
		}
		if opened = next; next == nil || !below.Block {
			break
		}
		cur = next
	}
	return all, nil
}

// Lower implements StackedFS.
func (OS) Lower(f File) (Extent, bool) {
	o, ok := f.(interface{ descriptor() (int, bool) })
	if !ok {
		return Extent{}, false
	}
	fd, block := o.descriptor()
	var st unix.Stat_t
	if !block || unix.Fstat(fd, &st) != nil {
		return Extent{}, false
	}
	dir := fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
	if _, err := os.Stat(filepath.Join(dir, "partition")); err == nil {
		return wholeDisk(dir)
	}
	info, err := unix.IoctlLoopGetStatus64(fd)
	if err != nil {
		return Extent{}, false // no loop device, or one without a file
	}
	size, err := unix.IoctlGetInt(fd, unix.BLKGETSIZE64)
	if err != nil {
		return Extent{}, false
	}
	e := newExtent(Inode{Dev: info.Device, Inode: info.Inode}, int64(info.Offset), int64(size), "")
	name, _ := os.ReadFile(filepath.Join(dir, "loop", "backing_file"))
	e.Path = strings.TrimSuffix(string(name), "\n")
	if info.Rdevice != 0 {
		e.Inode = Inode{Dev: info.Rdevice, Block: true}
	}
	return e, e.Start >= 0 && e.End >= e.Start
}

// wholeDisk returns the extent of a partition on its disk; dir is the partition's directory in
// sysfs.
func wholeDisk(dir string) (Extent, bool) {
	dir, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return Extent{}, false
	}
	start, err1 := sysNumber(filepath.Join(dir, "start"))
	size, err2 := sysNumber(filepath.Join(dir, "size"))
	disk := filepath.Dir(dir)
	var major, minor uint32
	text, err3 := os.ReadFile(filepath.Join(disk, "dev"))
	if err1 != nil || err2 != nil || err3 != nil {
		return Extent{}, false
	}
	if _, err := fmt.Sscanf(string(text), "%d:%d", &major, &minor); err != nil {
		return Extent{}, false
	}
	const sector = 512 // the unit of sysfs, independent of the device
	dev := Inode{Dev: unix.Mkdev(major, minor), Block: true}
	return newExtent(dev, start*sector, size*sector, deviceNode(disk)), true
}

// deviceNode returns the path of a device's node; dir is the device's directory in sysfs; empty:
// unknown.
func deviceNode(dir string) string {
	text, _ := os.ReadFile(filepath.Join(dir, "uevent"))
	for line := range strings.Lines(string(text)) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "DEVNAME="); ok {
			return filepath.Join("/dev", name)
		}
	}
	return ""
}

func sysNumber(path string) (int64, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(strings.TrimSpace(string(text)), 10, 53)
}

// descriptor returns the file's descriptor, and whether it is a block device.
func (f *osFile) descriptor() (int, bool) { return f.fd, f.block }
