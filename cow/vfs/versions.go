package vfs

import (
	"io/fs"
	"syscall"

	"golang.org/x/sys/unix"

	"cowblk/cow/aio"
)

// manyFiles is the number of files from which on an io_uring is used. It takes about as long as a
// system call for each file (BenchmarkVersions), and reads inodes that are not cached in parallel.
const manyFiles = 64

// Versions implements FS. It uses an io_uring for many files.
func (OS) Versions(names []string) []*Version {
	results, errs := make([]unix.Statx_t, len(names)), make([]unix.Errno, len(names))
	if len(names) < manyFiles || aio.Stat(names, results, errs) != nil {
		return VersionsByStat(OS{}, names)
	}
	versions := make([]*Version, len(names))
	for i := range results {
		if r := &results[i]; errs[i] == 0 && r.Mask&aio.StatMask == aio.StatMask {
			versions[i] = &Version{
				Dev: unix.Mkdev(r.Dev_major, r.Dev_minor), Inode: r.Ino, Size: int64(r.Size),
				MTime: nanoseconds(r.Mtime), CTime: nanoseconds(r.Ctime),
			}
		}
	}
	return versions
}

func nanoseconds(t unix.StatxTimestamp) int64 { return t.Sec*1e9 + int64(t.Nsec) }

// VersionsByStat implements FS.Versions by a Stat of each file.
func VersionsByStat(files FS, names []string) []*Version {
	versions := make([]*Version, len(names))
	for i, name := range names {
		if st, err := files.Stat(name); err == nil {
			versions[i] = VersionOf(st)
		}
	}
	return versions
}

// VersionOf returns the version in the result of FS.Stat; nil: it has none.
func VersionOf(st fs.FileInfo) *Version {
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !ok {
		return nil
	}
	return &Version{Dev: sys.Dev, Inode: sys.Ino, Size: sys.Size, MTime: sys.Mtim.Nano(),
		CTime: sys.Ctim.Nano()}
}
