package guest

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
)

// MaxRegions is the maximum number of regions of a table: that of the Linux vhost front-ends
// (memory slots), and the value of GET_MAX_MEM_SLOTS.
const MaxRegions = 509

var (
	// ErrRegion reports a region that cannot be added or removed. The table in use stays as it was.
	ErrRegion = errors.New("bad memory region")
	// ErrOutside reports an address range that the table does not cover.
	ErrOutside = errors.New("address outside guest memory")
)

// RegionDesc is one memory region as the front-end announced it (vhost-user, "Memory region
// description"). All fields are in bytes.
type RegionDesc struct {
	GuestAddr  uint64 // guest physical address of the first byte
	Size       uint64
	UserAddr   uint64 // address of the first byte in the front-end's process
	MmapOffset uint64 // offset of the region in its file
}

func (r RegionDesc) String() string {
	return fmt.Sprintf("guest %#x user %#x size %#x file offset %#x",
		r.GuestAddr, r.UserAddr, r.Size, r.MmapOffset)
}

// region is a described and mapped region; mem is exactly Size bytes.
type region struct {
	RegionDesc
	mem     []byte
	mapping *mapping
}

// Table is an immutable, reference-counted set of mapped regions, ordered by guest address. It may
// be used by any number of goroutines.
type Table struct {
	space   *Space
	regions []region
	refs    atomic.Int64
}

// NewTable maps regions[i] from fds[i]. The caller keeps the descriptors and owns the table's only
// reference. An empty table is valid, for front-ends that add regions one by one. Errors wrap
// ErrRegion or come from mmap; nothing stays mapped then.
//
// The table has its own Space; the tables of one front-end share one.
func NewTable(regions []RegionDesc, fds []int) (*Table, error) {
	return new(Space).NewTable(regions, fds)
}

// With returns a new table that also has r, mapped from fd (ADD_MEM_REG). The caller holds one
// reference to it and keeps fd. Errors wrap ErrRegion or come from mmap.
func (t *Table) With(r RegionDesc, fd int) (*Table, error) {
	if err := t.fits(r); err != nil {
		return nil, err
	}
	m, mem, err := mapRegion(t.space, r, fd)
	if err != nil {
		return nil, err
	}
	rs := make([]region, 0, len(t.regions)+1)
	rs = append(rs, t.regions...)
	rs = append(rs, region{RegionDesc: r, mem: mem, mapping: m})
	slices.SortFunc(rs, func(a, b region) int { return cmp.Compare(a.GuestAddr, b.GuestAddr) })
	next := newTable(t.space, rs)
	m.release() // newTable took its own
	return next, nil
}

// Without returns a new table that lacks r (REM_MEM_REG). The caller holds one reference to it. As
// the protocol asks, the region is the one whose guest address, user address and size are r's;
// anything else is ErrRegion.
func (t *Table) Without(r RegionDesc) (*Table, error) {
	i := slices.IndexFunc(t.regions, func(x region) bool {
		return x.GuestAddr == r.GuestAddr && x.UserAddr == r.UserAddr && x.Size == r.Size
	})
	if i < 0 {
		return nil, fmt.Errorf("remove region [%v]: the table has no such region: %w", r, ErrRegion)
	}
	return newTable(t.space, slices.Delete(slices.Clone(t.regions), i, i+1)), nil
}

// newTable takes ownership of rs and adds one reference to each mapping in it.
func newTable(space *Space, rs []region) *Table {
	t := &Table{space: space, regions: rs}
	t.refs.Store(1)
	for _, r := range rs {
		r.mapping.refs.Add(1)
	}
	return t
}

// Acquire adds a reference. The caller must hold one already, or know that another holder keeps its
// reference until Acquire returns.
func (t *Table) Acquire() { t.refs.Add(1) }

// Release drops a reference. The last one releases the table's mappings; those that no other table
// shares are unmapped, and every slice made from them becomes invalid.
func (t *Table) Release() {
	switch n := t.refs.Add(-1); {
	case n == 0:
		for _, r := range t.regions {
			r.mapping.release()
		}
	case n < 0:
		// Memory still in use may already be unmapped. No input leads here, and continuing would
		// corrupt a guest.
		panic("guest: Release of a table that has no reference left")
	}
}

// Regions returns the regions in the order of their guest addresses.
func (t *Table) Regions() []RegionDesc {
	out := make([]RegionDesc, len(t.regions))
	for i, r := range t.regions {
		out[i] = r.RegionDesc
	}
	return out
}
