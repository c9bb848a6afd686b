package index

import (
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
