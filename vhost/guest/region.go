package guest

import (
	"fmt"
	"math"
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// mapping is one mmap of a region's file, shared by every table that has the
// region.
type mapping struct {
	raw  []byte // as mmap returned it: page-aligned, may be larger than the region
	refs atomic.Int64
}

func (m *mapping) release() {
	if m.refs.Add(-1) == 0 {
		// munmap of a range that mmap returned cannot fail, and there
		// would be nothing to do about it.
		_ = unix.Munmap(m.raw)
	}
}

// fits checks r by itself and against the regions that t has.
func (t *Table) fits(r RegionDesc) error {
	switch {
	case len(t.regions) >= MaxRegions:
		return fmt.Errorf("add region [%v]: the table is full (%d regions): %w", r, MaxRegions, ErrRegion)
	case r.Size == 0:
		return fmt.Errorf("add region [%v]: size is 0: %w", r, ErrRegion)
	case r.Size > math.MaxInt64,
		r.GuestAddr > math.MaxUint64-r.Size,
		r.UserAddr > math.MaxUint64-r.Size,
		r.MmapOffset > math.MaxInt64-r.Size:
		return fmt.Errorf("add region [%v]: address or offset plus size overflows: %w", r, ErrRegion)
	}
	for _, x := range t.regions {
		if overlap(r.GuestAddr, x.GuestAddr, r.Size, x.Size) {
			return fmt.Errorf("add region [%v]: guest addresses overlap region [%v]: %w", r, x.RegionDesc, ErrRegion)
		}
		if overlap(r.UserAddr, x.UserAddr, r.Size, x.Size) {
			return fmt.Errorf("add region [%v]: user addresses overlap region [%v]: %w", r, x.RegionDesc, ErrRegion)
		}
	}
	return nil
}

// overlap says whether [a, a+an) and [b, b+bn) share a byte; neither wraps.
func overlap(a, b, an, bn uint64) bool { return a < b+bn && b < a+an }

// mapRegion maps r, already checked by fits, and returns the mapping with one
// reference, and its Size bytes.
func mapRegion(r RegionDesc, fd int) (*mapping, []byte, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, nil, fmt.Errorf("map region [%v]: fstat: %w", r, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, nil, fmt.Errorf("map region [%v]: expected a regular file (memfd, tmpfs, hugetlbfs), found file mode %#o: %w",
			r, st.Mode, ErrRegion)
	}
	if r.MmapOffset+r.Size > uint64(st.Size) {
		return nil, nil, fmt.Errorf("map region [%v]: the region ends at byte %d of its file, the file has %d: %w",
			r, r.MmapOffset+r.Size, st.Size, ErrRegion)
	}
	page, err := pageSize(fd, &st)
	if err != nil {
		return nil, nil, fmt.Errorf("map region [%v]: fstatfs: %w", r, err)
	}
	// The protocol does not promise page-aligned offsets; mmap wants them.
	start := r.MmapOffset &^ (page - 1)
	skip := r.MmapOffset - start
	length := (skip + r.Size + page - 1) &^ (page - 1)
	if length > math.MaxInt64 {
		return nil, nil, fmt.Errorf("map region [%v]: too large to map: %w", r, ErrRegion)
	}
	raw, err := unix.Mmap(fd, int64(start), int(length), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_NORESERVE)
	if err != nil {
		return nil, nil, fmt.Errorf("map region [%v]: mmap: %w", r, err)
	}
	// A guest's memory has no place in our core dump; a kernel that does
	// not know the advice loses nothing else.
	_ = unix.Madvise(raw, unix.MADV_DONTDUMP)
	m := &mapping{raw: raw}
	m.refs.Store(1)
	return m, raw[skip : skip+r.Size : skip+r.Size], nil
}

// pageSize returns the unit, in bytes, of offsets and lengths when fd is
// mapped: the huge page for hugetlbfs, which also refuses to unmap less.
func pageSize(fd int, st *unix.Stat_t) (uint64, error) {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(fd, &fs); err != nil {
		return 0, err
	}
	if fs.Type == unix.HUGETLBFS_MAGIC {
		return uint64(st.Blksize), nil
	}
	return uint64(os.Getpagesize()), nil
}
