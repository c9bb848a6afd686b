package index

import "sync/atomic"

// stragglers is how many layers below the first owner of a page a narrow page
// has room for: a write of an older view may complete after one of a newer.
const stragglers = 16

// Raise makes o the owner of n blocks from first, except of those that have a
// newer one already. What lies beyond the last block is left out.
func (x *Index) Raise(first, n uint64, o Owner) {
	if first >= x.blocks || o == 0 {
		return
	}
	end := first + min(n, x.blocks-first)
	for first < end {
		page := first >> pageShift
		stop := min(end, (page+1)<<pageShift)
		lock := &x.locks[page%stripes]
		lock.Lock()
		x.raisePage(page, first%pageBlocks, stop-first, o)
		lock.Unlock()
		first = stop
	}
}

// raisePage is Raise for n blocks of a page, under its lock.
func (x *Index) raisePage(page, at, n uint64, o Owner) {
	e := entry(x.dir[page].Load())
	size := x.pageSize(page)
	if !e.paged() {
		if e.owner() >= o {
			return
		}
		if n == size {
			x.dir[page].Store(uint64(uniformEntry(o, e.slots())))
			return
		}
		x.unfold(page, e, at, n, o)
		return
	}
	if !e.wide() && !fits(e.owner(), o) {
		if n == size && o > e.owner() {
			x.dir[page].Store(uint64(uniformEntry(o, e.slots())))
			return
		}
		x.widen(page, e)
		e = entry(x.dir[page].Load())
	}
	if e.wide() {
		raiseWide(x.arena.words(e.slot(), 2*slotWords), at, n, o)
	} else {
		raiseNarrow(x.arena.words(e.slot(), slotWords), at, n, uint8(o-e.owner()))
	}
	// A page that was filled up by and by is folded when its last block is
	// written: rare enough to look, and sequential writes end there.
	if at+n == size {
		x.fold(page, e, size)
	}
}

// pageSize is the number of blocks of a page: the last one may be short.
func (x *Index) pageSize(page uint64) uint64 {
	return min(pageBlocks, x.blocks-page<<pageShift)
}

// unfold turns a page of one owner into one of two: o for n blocks from at.
// The slots are written while the directory still says that there is but one
// owner, so that no lookup trusts them.
func (x *Index) unfold(page uint64, e entry, at, n uint64, o Owner) {
	old := e.owner()
	base := o - min(o, stragglers)
	if old != 0 {
		base = old - 1
	}
	slots := e.slots()
	if wide := !fits(base, o); !e.hasSlots() || wide && !e.wide() {
		slots = x.newSlots(wide)
	}
	if slots.wide() {
		words := x.arena.words(slots.slot(), 2*slotWords)
		fillWords(words, uint64(old)*0x0001000100010001)
		raiseWide(words, at, n, o)
		base = 0
	} else {
		words := x.arena.words(slots.slot(), slotWords)
		fillWords(words, relative(base, old)*0x0101010101010101)
		raiseNarrow(words, at, n, uint8(o-base))
	}
	x.dir[page].Store(uint64(pagedEntry(base, slots)))
}

// widen replaces a narrow page by a wide copy. Its old slot stays unused: a
// lookup may still be reading it.
func (x *Index) widen(page uint64, e entry) {
	slots := x.newSlots(true)
	narrow := x.arena.words(e.slot(), slotWords)
	wide := x.arena.words(slots.slot(), 2*slotWords)
	for i := range narrow {
		w := narrow[i]
		for half := range 2 {
			var out uint64
			for k := range 4 {
				if b := w >> (32*half + 8*k) & 0xff; b != 0 {
					out |= (uint64(e.owner()) + b) << (16 * k)
				}
			}
			atomic.StoreUint64(&wide[2*i+half], out)
		}
	}
	x.dir[page].Store(uint64(pagedEntry(0, slots)))
}

// fold makes a page whose blocks all have one owner an entry again.
func (x *Index) fold(page uint64, e entry, size uint64) {
	var o Owner
	var run uint64
	if e.wide() {
		o, run = wideRun(x.arena.words(e.slot(), 2*slotWords), 0, size)
	} else {
		var b uint8
		b, run = narrowRun(x.arena.words(e.slot(), slotWords), 0, size)
		o = e.owner() + Owner(b)
		if b == 0 {
			o = 0
		}
	}
	if run == size {
		x.dir[page].Store(uint64(uniformEntry(o, e.slots())))
	}
}

func (x *Index) newSlots(wide bool) entry {
	if wide {
		return slotsOf(x.arena.alloc(2), true)
	}
	return slotsOf(x.arena.alloc(1), false)
}

// relative is the byte of o in a narrow page.
func relative(base, o Owner) uint64 {
	if o == 0 {
		return 0
	}
	return uint64(o - base)
}

func fillWords(words []uint64, v uint64) {
	for i := range words {
		atomic.StoreUint64(&words[i], v)
	}
}

// raiseNarrow raises n bytes from at to b, those that are higher excepted. Only
// the holder of the page's lock writes, so a store needs no compare.
func raiseNarrow(words []uint64, at, n uint64, b uint8) {
	all := uint64(b) * 0x0101010101010101
	for n > 0 {
		i, skip := at/8, at%8
		count := min(8-skip, n)
		mask := (^uint64(0) >> (64 - 8*count)) << (8 * skip)
		old := atomic.LoadUint64(&words[i])
		if fresh := maxBytes(old, all, mask); fresh != old {
			atomic.StoreUint64(&words[i], fresh)
		}
		at += count
		n -= count
	}
}

// maxBytes is the greater of each byte of a and b within mask, a elsewhere.
func maxBytes(a, b, mask uint64) uint64 {
	if a&mask == 0 {
		return a | b&mask
	}
	out := a
	for s := 0; s < 64; s += 8 {
		m := uint64(0xff) << s
		if m&mask != 0 && b&m > a&m {
			out = out&^m | b&m
		}
	}
	return out
}

// raiseWide is raiseNarrow for uint16 owners.
func raiseWide(words []uint64, at, n uint64, o Owner) {
	for ; n > 0; at, n = at+1, n-1 {
		i, s := at/4, at%4*16
		old := atomic.LoadUint64(&words[i])
		if Owner(old>>s) < o {
			atomic.StoreUint64(&words[i], old&^(0xffff<<s)|uint64(o)<<s)
		}
	}
}
