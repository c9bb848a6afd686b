package pagecache

import "golang.org/x/sys/unix"

// kind is what the file system of a file is known to do.
type kind struct {
	coherent       bool // a mapping shows each write(2) once it has returned
	readsFillHoles bool // a page fault in a hole takes space
	showsResident  bool // mincore(2) tells which pages are resident
}

// kindOf returns the kind of an open file's file system. Network and user-space file systems may
// have a cache for mappings that writes pass by.
func kindOf(fd int) (kind, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return kind{}, err
	}
	k := kind{showsResident: mayLook(&st)}
	if st.Mode&unix.S_IFMT == unix.S_IFBLK {
		k.coherent = true
		return k, nil
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(fd, &fs); err != nil {
		return kind{}, err
	}
	switch uint32(fs.Type) {
	case unix.EXT4_SUPER_MAGIC, unix.XFS_SUPER_MAGIC, unix.BTRFS_SUPER_MAGIC, unix.F2FS_SUPER_MAGIC:
		k.coherent = true
	case unix.TMPFS_MAGIC, unix.RAMFS_MAGIC, unix.HUGETLBFS_MAGIC:
		k.coherent, k.readsFillHoles = true, true
	}
	return k, nil
}
