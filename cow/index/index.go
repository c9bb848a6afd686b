package index

import (
	"math/bits"
	"sync"
	"sync/atomic"
)

// stripes is the number of locks that the pages share.
const stripes = 64

// Index maps blocks to owners. All methods but Close may run concurrently.
type Index struct {
	blocks uint64
	dir    []atomic.Uint64 // of entry
	arena  *arena
	locks  [stripes]stripe
	checks [stripes]scratch // with invariants only; under the lock of its number
}

// stripe is a mutex on a cache line of its own.
type stripe struct {
	sync.Mutex
	_ [56]byte
}

// New returns an index of a number of blocks, all owned by 0.
func New(blocks uint64) *Index {
	pages := (blocks + pageBlocks - 1) / pageBlocks
	return &Index{blocks: blocks, dir: make([]atomic.Uint64, pages), arena: newArena(pages)}
}

// Blocks returns the number of blocks.
func (x *Index) Blocks() uint64 { return x.blocks }

// Memory returns the bytes of memory of directory and pages.
func (x *Index) Memory() int64 { return int64(len(x.dir))*8 + x.arena.bytes() }

// Close frees the memory. The index must not be used any more.
func (x *Index) Close() { x.arena.close() }

// Lookup returns the owner of block and the number of blocks from it on, at most max, with the same
// owner: 1 ≤ run ≤ max for max ≥ 1. Blocks beyond the last are owned by 0.
//
// Each block's owner is one that it had at some moment during the call, and never older than the
// result of a Raise that returned before. No lock is needed because owners only rise, a word of a
// page is read and written atomically, and a page is decoded with an entry that is unchanged after
// the words have been read (see entry).
func (x *Index) Lookup(block, max uint64) (o Owner, run uint64) {
	if block >= x.blocks {
		return 0, max
	}
	max = min(max, x.blocks-block)
	o, run = x.lookupPage(block, max)
	for run < max && (block+run)%pageBlocks == 0 {
		next, n := x.lookupPage(block+run, max-run)
		if next != o {
			break
		}
		run += n
	}
	return o, run
}

// lookupPage is Lookup within the page of block.
func (x *Index) lookupPage(block, max uint64) (Owner, uint64) {
	slot := &x.dir[block>>pageShift]
	at := block % pageBlocks
	max = min(max, pageBlocks-at)
	for {
		e := entry(slot.Load())
		if !e.paged() {
			return e.owner(), max
		}
		n, run := x.run(e, at, max)
		if entry(slot.Load()) == e {
			return ownerOf(e.owner(), n), run
		}
	}
}

// run returns the number at a block of an entry's page, and the length of the run of equal numbers
// from there on, at most max.
func (x *Index) run(e entry, at, max uint64) (n, run uint64) {
	if e.grouped() {
		// The path of most lookups: shorter than groups.at, and much shorter than run.
		word, bit := groupPlace(at / groupBlocks)
		switch n = x.arena.load(e.unit()-groupUnits, word) >> bit & mixed; {
		case n == mixed:
		case at%groupBlocks+max <= groupBlocks:
			return n, max
		default:
			return n, x.groups(e).run(e.kind(), x.words(e), n, at, max)
		}
	}
	return e.kind().run(x.words(e), at, max)
}

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

// words returns the words of an entry's page.
func (x *Index) words(e entry) []uint64 {
	return x.arena.words(e.unit(), forms[e.kind()].words)
}

// groups returns the groups of an entry's page that has them.
func (x *Index) groups(e entry) groups {
	return x.arena.words(e.unit()-groupUnits, groupWords)
}

// words returns n words of memory from the start of a unit.
func (a *arena) words(unit uint64, n int) []uint64 {
	s := a.slabs[unit/slabUnits].Load()
	first := unit % slabUnits * unitWords
	return s[first : first+uint64(n)]
}

// load reads one word of the memory that starts at a unit.
func (a *arena) load(unit, word uint64) uint64 {
	s := a.slabs[unit/slabUnits].Load()
	return atomic.LoadUint64(&s[(unit*unitWords+word)%slabWords])
}

// groupBlocks is the number of blocks of a group: 64 KiB of a disk with blocks of 4 KiB. Most
// writes are larger, so that nearly all lookups need only the groups' numbers, which are a
// thirteenth of a page and stay in the CPU's cache where the page does not.
const (
	groupBlocks = 16
	pageGroups  = pageBlocks / groupBlocks
	groupWords  = pageGroups / 8

	// mixed, instead of a number, refers to the blocks' own numbers.
	mixed = 1<<8 - 1
	// A page with more mixed groups has none: most lookups would read two places.
	maxMixed = pageGroups / 4
)

// groups has a byte for each group of a page: the number that all its blocks have, or mixed. A
// group is set to mixed before the first of its blocks' numbers is raised, and gets a number after
// the last: a lookup finds a value that was right in either place.
type groups []uint64

// groupPlace returns the word of group g and its lowest bit there.
func groupPlace(g uint64) (word, bit uint64) { return g / 8, g % 8 * 8 }

func (s groups) at(g uint64) uint64 {
	word, bit := groupPlace(g)
	return atomic.LoadUint64(&s[word]) >> bit & mixed
}

// run returns the length of the run of n from a block on, at most max; the block's group was just
// found to have n. That group is not read again: it may be mixed by now.
func (s groups) run(k kind, words []uint64, n, at, max uint64) (run uint64) {
	for run = groupBlocks - at%groupBlocks; run < max; run += groupBlocks {
		switch s.at((at + run) / groupBlocks) {
		case n:
		case mixed:
			if next, more := k.run(words, at+run, max-run); next == n {
				run += more
			}
			return run
		default:
			return run
		}
	}
	return max
}

// form is the layout of owners in the 64-bit words of a page, as numbers above the base of its
// entry: number n > 0 is owner base+n, and 0 is owner 0.
type form struct {
	bits  uint64 // of a number
	per   uint64 // numbers in a word, from its low end on; the rest is zero
	ones  uint64 // the number 1 in each place
	max   Owner  // greatest number
	words int    // of a page
}

// kind selects a form. A page gets the smallest that can distinguish its layers.
type kind uint64

const (
	tight  kind = iota // 63 layers in three quarters of a byte a block
	narrow             // 255 in one byte
	wide               // all owners in two bytes; its base is 0
)

// Places in a word of each form, as constants: every lookup divides by them.
const (
	tightPer  = 10
	narrowPer = 8
	widePer   = 4
)

var forms = [...]form{
	tight:  {6, tightPer, 0x041041041041041, 1<<6 - 1, (pageBlocks + tightPer - 1) / tightPer},
	narrow: {8, narrowPer, 0x0101010101010101, 1<<8 - 1, pageBlocks / narrowPer},
	wide:   {16, widePer, 0x0001000100010001, 1<<16 - 1, pageBlocks / widePer},
}

// place returns the word of a block's number and its place in the word.
func (k kind) place(at uint64) (word, place uint64) {
	switch k {
	case tight:
		return at / tightPer, at % tightPer
	case narrow:
		return at / narrowPer, at % narrowPer
	}
	return at / widePer, at % widePer
}

// run returns the number at a block of the page, and the length of the run of equal numbers from
// there on, at most max.
func (k kind) run(words []uint64, at, max uint64) (n, run uint64) {
	f := &forms[k]
	i, place := k.place(at)
	w := atomic.LoadUint64(&words[i]) >> (place * f.bits)
	n = w & uint64(f.max)
	if max == 1 {
		return n, 1
	}
	return n, f.equal(words[i:], w, n, place, max)
}

// equal returns how many numbers from a place of the first word on are n. w is that word, shifted
// so that the place is its lowest.
func (f *form) equal(words []uint64, w, n, place, max uint64) uint64 {
	all := n * f.ones
	run := f.per - place
	// Ignore the zeros that the shift has brought in.
	valid := f.ones * uint64(f.max) >> (place * f.bits)
	if diff := (w ^ all) & valid; diff != 0 {
		return min(max, uint64(bits.TrailingZeros64(diff))/f.bits)
	}
	for i := 1; run < max; i++ {
		if diff := atomic.LoadUint64(&words[i]) ^ all; diff != 0 {
			return min(max, run+uint64(bits.TrailingZeros64(diff))/f.bits)
		}
		run += f.per
	}
	return min(max, run)
}

// ownerOf returns the owner of a number in a page.
func ownerOf(base Owner, n uint64) Owner {
	if n == 0 {
		return 0
	}
	return base + Owner(n)
}
