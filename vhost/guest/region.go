package guest

import (
	"fmt"
	"math"
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// mapping is one mmap of a region's file, shared by every table that has the region.
type mapping struct {
	space *Space
	raw   []byte // as mmap returned it: page-aligned, may be larger than the region
	refs  atomic.Int64
}

func (m *mapping) release() {
	if m.refs.Add(-1) == 0 {
		// munmap of a range from mmap cannot fail.
		n := int64(len(m.raw))
		_ = unix.Munmap(m.raw)
		m.space.unreserve(n)
	}
}

// fits checks r by itself and against the regions of t.
func (t *Table) fits(r RegionDesc) error {
	switch {
	case len(t.regions) >= MaxRegions:
		return fmt.Errorf("add region [%v]: the table is full (%d regions): %w", r, MaxRegions,
			ErrRegion)
	case r.Size == 0:
		return fmt.Errorf("add region [%v]: size is 0: %w", r, ErrRegion)
	case r.Size > math.MaxInt64,
		r.GuestAddr > math.MaxUint64-r.Size,
		r.UserAddr > math.MaxUint64-r.Size,
		r.MmapOffset > math.MaxInt64-r.Size:
		return fmt.Errorf("add region [%v]: address or offset plus size overflows: %w", r,
			ErrRegion)
	}
	for _, x := range t.regions {
		if overlap(r.GuestAddr, x.GuestAddr, r.Size, x.Size) {
			return fmt.Errorf("add region [%v]: guest addresses overlap region [%v]: %w", r,
				x.RegionDesc, ErrRegion)
		}
		if overlap(r.UserAddr, x.UserAddr, r.Size, x.Size) {
			return fmt.Errorf("add region [%v]: user addresses overlap region [%v]: %w", r,
				x.RegionDesc, ErrRegion)
		}
	}
	return nil
}

// overlap reports whether [a, a+an) and [b, b+bn) share a byte; neither wraps.
func overlap(a, b, an, bn uint64) bool { return a < b+bn && b < a+an }

// mapRegion maps r, which has passed fits, and returns the mapping with one reference, and its Size
// bytes.
func mapRegion(space *Space, r RegionDesc, fd int) (*mapping, []byte, error) {
	size, page, err := CheckFile(fd)
	if err != nil {
		return nil, nil, fmt.Errorf("map region [%v]: %w", r, err)
	}
	if r.MmapOffset+r.Size > size {
		return nil, nil, fmt.Errorf(
			"map region [%v]: the region ends at byte %d of its file, the file has %d: %w",
			r, r.MmapOffset+r.Size, size, ErrRegion)
	}
	// The protocol does not require page-aligned offsets, but mmap does.
	start := r.MmapOffset &^ (page - 1)
	skip := r.MmapOffset - start
	length := (skip + r.Size + page - 1) &^ (page - 1)
	if length > math.MaxInt64 {
		return nil, nil, fmt.Errorf("map region [%v]: too large to map: %w", r, ErrRegion)
	}
	if err := space.reserve(int64(length)); err != nil {
		return nil, nil, fmt.Errorf("map region [%v]: %w", r, err)
	}
	raw, err := unix.Mmap(fd, int64(start), int(length), unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_SHARED|unix.MAP_NORESERVE)
	if err != nil {
		space.unreserve(int64(length))
		return nil, nil, fmt.Errorf("map region [%v]: mmap: %w", r, err)
	}
	// Guest memory must not be in core dumps of this process. Kernels without the advice ignore it.
	_ = unix.Madvise(raw, unix.MADV_DONTDUMP)
	m := &mapping{space: space, raw: raw}
	m.refs.Store(1)
	return m, raw[skip : skip+r.Size : skip+r.Size], nil
}

// CheckFile returns the present size of a front-end's file, and the unit of offsets and lengths of
// its mappings, both in bytes. The unit is the huge page for hugetlbfs, which also refuses to unmap
// less. Errors wrap ErrRegion: a file that is not regular, or on a file system where a page fault
// may never end.
//
// A thread that waits in a page fault cannot be stopped for the garbage collector. So one page on a
// front-end's own file system (FUSE, or anything mounted on top of one), or on a server that does
// not answer, would stop the whole process. A memory file on a local disk is unusual but safe.
func CheckFile(fd int) (size, page uint64, err error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return 0, 0, fmt.Errorf("fstat: %w", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return 0, 0, fmt.Errorf(
			"expected a regular file (memfd, tmpfs, hugetlbfs), found file mode %#o: %w", st.Mode,
			ErrRegion)
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(fd, &fs); err != nil {
		return 0, 0, fmt.Errorf("fstatfs: %w", err)
	}
	switch fs.Type {
	case unix.HUGETLBFS_MAGIC:
		return uint64(st.Size), uint64(st.Blksize), nil
	case unix.TMPFS_MAGIC, unix.RAMFS_MAGIC, unix.EXT4_SUPER_MAGIC, unix.XFS_SUPER_MAGIC,
		unix.BTRFS_SUPER_MAGIC, unix.F2FS_SUPER_MAGIC, unix.BCACHEFS_SUPER_MAGIC, zfsMagic:
		return uint64(st.Size), uint64(os.Getpagesize()), nil
	}
	return 0, 0, fmt.Errorf("expected a file of memory (memfd, tmpfs, hugetlbfs) or of a local disk, found file system type %#x: %w", fs.Type, ErrRegion)
}

// zfsMagic is ZFS_SUPER_MAGIC, which Linux does not define.
const zfsMagic = 0x2fc12fc1
