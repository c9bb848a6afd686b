package index

import (
	"math/bits"
	"sync"
	"sync/atomic"
)

// stripes is the number of locks that Raise spreads over the pages.
const stripes = 64

// Index maps blocks to owners. All methods but Close may run concurrently.
type Index struct {
	blocks uint64
	dir    []atomic.Uint64 // of entry
	arena  *arena
	locks  [stripes]stripe
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

// Blocks is the number of blocks of the index.
func (x *Index) Blocks() uint64 { return x.blocks }

// Memory is the number of bytes the index takes: directory and pages.
func (x *Index) Memory() int64 { return int64(len(x.dir))*8 + x.arena.bytes() }

// Close gives the memory back. Nothing may use the index any more.
func (x *Index) Close() { x.arena.close() }

// Lookup returns the owner of block and the number of blocks from it on, at
// most max, that have the same one: 1 ≤ run ≤ max for a max of at least 1.
// What lies beyond the last block is owned by 0.
//
// Each block's owner is one it had at some moment during the call, and never
// older than what a Raise that returned before had made it. This needs no lock
// because owners only rise, a word of a page is read and written at once, and
// a page is decoded by an entry that is still the same after the words have
// been read (see entry).
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
		var o Owner
		var run uint64
		if e.wide() {
			o, run = wideRun(x.arena.words(e.slot(), 2*slotWords), at, max)
		} else {
			var b uint8
			b, run = narrowRun(x.arena.words(e.slot(), slotWords), at, max)
			if b != 0 {
				o = e.owner() + Owner(b)
			}
		}
		if entry(slot.Load()) == e {
			return o, run
		}
	}
}

// narrowRun returns the byte at a block of the page and how many from there
// on, at most max, are equal to it.
func narrowRun(words []uint64, at, max uint64) (uint8, uint64) {
	i, shift := at/8, at%8*8
	w := atomic.LoadUint64(&words[i]) >> shift
	b := uint8(w)
	if max == 1 {
		return b, 1
	}
	all := uint64(b) * 0x0101010101010101
	run := 8 - at%8
	// The shift has brought in zeros: they say nothing about equality.
	if diff := (w ^ all) & (^uint64(0) >> shift); diff != 0 {
		return b, min(max, uint64(bits.TrailingZeros64(diff))/8)
	}
	for i++; run < max; i++ {
		if diff := atomic.LoadUint64(&words[i]) ^ all; diff != 0 {
			return b, min(max, run+uint64(bits.TrailingZeros64(diff))/8)
		}
		run += 8
	}
	return b, min(max, run)
}

// wideRun is narrowRun for a page of uint16 owners.
func wideRun(words []uint64, at, max uint64) (Owner, uint64) {
	i, shift := at/4, at%4*16
	w := atomic.LoadUint64(&words[i]) >> shift
	o := Owner(w)
	if max == 1 {
		return o, 1
	}
	all := uint64(o) * 0x0001000100010001
	run := 4 - at%4
	if diff := (w ^ all) & (^uint64(0) >> shift); diff != 0 {
		return o, min(max, uint64(bits.TrailingZeros64(diff))/16)
	}
	for i++; run < max; i++ {
		if diff := atomic.LoadUint64(&words[i]) ^ all; diff != 0 {
			return o, min(max, run+uint64(bits.TrailingZeros64(diff))/16)
		}
		run += 4
	}
	return o, min(max, run)
}
