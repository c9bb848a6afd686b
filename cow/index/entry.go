package index

// Owner numbers the layers of a stack from 1, the oldest. 0 is the base, or nothing without a base.
type Owner = uint16

const (
	pageShift  = 12
	pageBlocks = 1 << pageShift // blocks per page
)

// entry is a directory entry:
//
//	bit 0      paged: the owners are in the entry's page, else all are the same
//	bits 1–2   form of the page
//	bits 3–18  the owner of all blocks, or the base of the page
//	bit 19     grouped: the page's groups are in the arena before it
//	bits 20–   position of the page in the arena, plus 1; 0: no page was needed yet
//
// An entry keeps its page when all its blocks get one owner, and reuses it later. So memory never
// serves two entries, and the base of a page never falls: if a lookup finds the entry unchanged
// after it has read the page, it has decoded the page correctly.
type entry uint64

const (
	entryPaged     = entry(1) << 0
	entryKindBits  = 1
	entryOwnerBits = 3
	entryGrouped   = entry(1) << 19
	entryPageBits  = 20
)

func uniformEntry(o Owner, page entry) entry {
	return page | entry(o)<<entryOwnerBits
}

func pagedEntry(base Owner, page entry) entry {
	return page | entryPaged | entry(base)<<entryOwnerBits
}

// pageOf returns an entry with only the page and its form.
func pageOf(unit uint64, k kind) entry {
	return entry(unit+1)<<entryPageBits | entry(k)<<entryKindBits
}

func (e entry) paged() bool   { return e&entryPaged != 0 }
func (e entry) kind() kind    { return kind(e >> entryKindBits & 3) }
func (e entry) grouped() bool { return e&entryGrouped != 0 }
func (e entry) owner() Owner  { return Owner(e >> entryOwnerBits) } // or base
func (e entry) hasPage() bool { return e>>entryPageBits != 0 }
func (e entry) unit() uint64  { return uint64(e>>entryPageBits) - 1 }

// page returns e without the owner bits.
func (e entry) page() entry {
	return e>>entryPageBits<<entryPageBits | e&(entryGrouped|3<<entryKindBits)
}
