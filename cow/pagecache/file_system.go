package pagecache

import "golang.org/x/sys/unix"

// kind is what the file system of a file is known to do.
type kind struct {
	coherent       bool // a mapping shows each write(2) once it has returned
	readsFillHoles bool // a page fault in a hole takes space
}

// kindOf returns the kind of an open file's file system. Network and user-space file systems may
// have a cache for mappings that writes pass by.
func kindOf(fd int) (kind, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return kind{}, err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFBLK {
		return kind{coherent: true}, nil
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(fd, &fs); err != nil {
		return kind{}, err
	}
	switch uint32(fs.Type) {
	case unix.EXT4_SUPER_MAGIC, unix.XFS_SUPER_MAGIC, unix.BTRFS_SUPER_MAGIC, unix.F2FS_SUPER_MAGIC:
		return kind{coherent: true}, nil
	case unix.TMPFS_MAGIC, unix.RAMFS_MAGIC, unix.HUGETLBFS_MAGIC:
		return kind{coherent: true, readsFillHoles: true}, nil
	}
	return kind{}, nil
}
