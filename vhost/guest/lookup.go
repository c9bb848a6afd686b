package guest

import "fmt"

// find returns the region that contains guest address gpa, and its index, or nil.
//
// There is no last-hit cache: in a table that all queues share, each of them would write its cache
// line, which costs more than the two or three comparisons of a search through a usual guest's
// regions.
func (t *Table) find(gpa uint64) (*region, int) {
	lo, hi := 0, len(t.regions)
	for lo < hi {
		mid := int(uint(lo+hi) >> 1)
		if t.regions[mid].GuestAddr <= gpa {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	if lo == 0 {
		return nil, 0
	}
	r := &t.regions[lo-1]
	if gpa-r.GuestAddr >= r.Size {
		return nil, 0
	}
	return r, lo - 1
}

// Slice returns the n bytes at guest physical address gpa, which must lie within one region. The
// slice is valid while the caller holds a reference to the table. Errors wrap ErrOutside.
func (t *Table) Slice(gpa, n uint64) ([]byte, error) {
	r, _ := t.find(gpa)
	if r == nil {
		return nil, outside("guest", gpa, n)
	}
	off := gpa - r.GuestAddr
	if n > r.Size-off {
		return nil, outside("guest", gpa, n)
	}
	return r.mem[off : off+n : off+n], nil
}

// Append appends to dst the n bytes at guest physical address gpa: one slice, or several if the
// range spans adjacent regions. It allocates only when dst has no room; n = 0 appends nothing and
// checks nothing. On an error, which wraps ErrOutside, dst is returned unchanged.
func (t *Table) Append(dst [][]byte, gpa, n uint64) ([][]byte, error) {
	if n == 0 {
		return dst, nil
	}
	r, i := t.find(gpa)
	if r == nil {
		return dst, outside("guest", gpa, n)
	}
	off := gpa - r.GuestAddr
	if n <= r.Size-off {
		return append(dst, r.mem[off:off+n:off+n]), nil
	}
	return t.appendAcross(dst, gpa, n, i)
}

// appendAcross is Append for a range that leaves region i. The addresses of a region never wrap, so
// the sums below do not either.
func (t *Table) appendAcross(dst [][]byte, gpa, n uint64, i int) ([][]byte, error) {
	out := dst
	at, left := gpa, n
	for ; left > 0; i++ {
		if i == len(t.regions) || at-t.regions[i].GuestAddr >= t.regions[i].Size {
			return dst, outside("guest", gpa, n)
		}
		r := &t.regions[i]
		off := at - r.GuestAddr
		part := min(left, r.Size-off)
		out = append(out, r.mem[off:off+part:off+part])
		at += part
		left -= part
	}
	return out, nil
}

// User returns the n bytes at front-end virtual address uva, the form of ring addresses in the
// protocol. They must lie within one region. Errors wrap ErrOutside.
func (t *Table) User(uva, n uint64) ([]byte, error) {
	for i := range t.regions {
		r := &t.regions[i]
		if uva < r.UserAddr || uva-r.UserAddr >= r.Size {
			continue
		}
		off := uva - r.UserAddr
		if n > r.Size-off {
			break
		}
		return r.mem[off : off+n : off+n], nil
	}
	return nil, outside("user", uva, n)
}

func outside(space string, addr, n uint64) error {
	return fmt.Errorf("%s address %#x, %d bytes: %w", space, addr, n, ErrOutside)
}
