package index

// Owner numbers the layers of a stack from 1, the oldest. 0 is the base, or
// nothing where there is no base.
type Owner = uint16

const (
	pageShift  = 12
	pageBlocks = 1 << pageShift // blocks per page

	// maxSpan is how many layers one byte can tell apart; byte 0 is owner 0.
	maxSpan = 255
)

// entry is a directory entry:
//
//	bit 0      paged: the owners are in the entry's slots, else all are the same
//	bit 1      wide: the slots hold uint16 owners, else bytes relative to base
//	bits 2–17  the owner of all blocks, or the base of a narrow page: byte b > 0
//	           stands for owner base+b
//	bits 18–   number of the first arena slot plus 1; 0: none was ever needed
//
// An entry keeps its slots when all its blocks get one owner, and uses them
// again. A slot thus never serves two entries, and base never falls: an entry
// that a lookup finds unchanged after it has read the slots has decoded them
// rightly, whatever happened in between.
type entry uint64

const (
	entryPaged     = entry(1) << 0
	entryWide      = entry(1) << 1
	entryOwnerBits = 2
	entrySlotBits  = 18
)

func uniformEntry(o Owner, slots entry) entry {
	return slots | entry(o)<<entryOwnerBits
}

func pagedEntry(base Owner, slots entry) entry {
	return slots | entryPaged | entry(base)<<entryOwnerBits
}

// slotsOf is an entry of nothing but the slots and their width.
func slotsOf(slot uint64, wide bool) entry {
	e := entry(slot+1) << entrySlotBits
	if wide {
		e |= entryWide
	}
	return e
}

func (e entry) paged() bool    { return e&entryPaged != 0 }
func (e entry) wide() bool     { return e&entryWide != 0 }
func (e entry) owner() Owner   { return Owner(e >> entryOwnerBits) } // or base
func (e entry) slots() entry   { return e&entryWide | e>>entrySlotBits<<entrySlotBits }
func (e entry) hasSlots() bool { return e>>entrySlotBits != 0 }
func (e entry) slot() uint64   { return uint64(e>>entrySlotBits) - 1 }

// fits reports whether a narrow page of this base can hold o.
func fits(base, o Owner) bool { return o == 0 || o > base && o-base <= maxSpan }
