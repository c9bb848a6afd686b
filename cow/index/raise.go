package index

import (
	"cowblk/cow/invariants"
	"math/bits"
	"sync/atomic"
)

// olderLayers is how many layers below the first owner of a page a new page can hold: a write of an
// older view may complete after a write of a newer one.
const olderLayers = 16

// Raise makes o the owner of n blocks from first, except of blocks with a newer owner. Blocks
// beyond the last are ignored.
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
		check := &x.checks[page%stripes]
		if invariants.Enabled {
			check.before = x.owners(check.before[:0], page<<pageShift)
		}
		x.raisePage(page, first%pageBlocks, stop-first, o)
		if invariants.Enabled {
			x.checkRaised(check, page<<pageShift, first, stop, o)
		}
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
			x.dir[page].Store(uint64(uniformEntry(o, e.page())))
			return
		}
		x.unfold(page, e, at, n, o)
		return
	}
	if !e.kind().holds(e.owner(), o) {
		if n == size && o > e.owner() {
			x.dir[page].Store(uint64(uniformEntry(o, e.page())))
			return
		}
		e = x.widen(page, e, o)
	}
	e = x.raiseNumbers(page, e, at, n, number(e.owner(), o))
	// A page that was filled gradually is folded when its last block is written: that is rare
	// enough for a scan, and sequential writes end there.
	if at+n == size {
		x.fold(page, e, size)
	}
}

// raiseNumbers raises n numbers of a page from at on. It returns the page's entry, which changes if
// its groups are no longer worth keeping.
func (x *Index) raiseNumbers(page uint64, e entry, at, n, to uint64) entry {
	k, words := e.kind(), x.words(e)
	if !e.grouped() {
		k.raise(words, at, n, to)
		return e
	}
	s, first, last := x.groups(e), at/groupBlocks, (at+n-1)/groupBlocks
	more := s.mix(first, last)
	k.raise(words, at, n, to)
	s.resolve(k, words, first, last)
	if more && s.mixed() > maxMixed {
		e &^= entryGrouped
		x.dir[page].Store(uint64(e))
	}
	return e
}

// pageSize returns the number of blocks of a page: the last one may be short.
func (x *Index) pageSize(page uint64) uint64 {
	return min(pageBlocks, x.blocks-page<<pageShift)
}

// unfold turns a page of one owner into one of two: o for n blocks from at. The page is written
// while the directory still has one owner, so that no lookup reads it.
func (x *Index) unfold(page uint64, e entry, at, n uint64, o Owner) {
	old := e.owner()
	base := o - min(o, olderLayers)
	if old != 0 {
		base = old - 1
	}
	p := e.page()
	if k := kindFor(base, old, o); !e.hasPage() || k > e.kind() {
		p = x.newPage(k)
	}
	k := p.kind()
	base = k.base(base)
	words := x.words(p)
	k.fill(words, number(base, old))
	k.raise(words, at, n, number(base, o))
	x.makeGroups(p)
	x.dir[page].Store(uint64(pagedEntry(base, p)))
}

// widen replaces a page by a copy that can hold o as well, and returns the new entry. The old
// memory stays unused: a lookup may still be reading it.
func (x *Index) widen(page uint64, e entry, o Owner) entry {
	base := e.owner()
	k := kindFor(base, o, base+forms[e.kind()].max)
	base = k.base(base)
	p := x.newPage(k)
	from, to := x.words(e), x.words(p)
	for at := uint64(0); at < pageBlocks; {
		n, run := e.kind().run(from, at, pageBlocks-at)
		if n != 0 {
			k.raise(to, at, run, n+uint64(e.owner()-base))
		}
		at += run
	}
	x.makeGroups(p)
	e = pagedEntry(base, p)
	x.dir[page].Store(uint64(e))
	return e
}

// makeGroups makes the groups of a page that no lookup reads yet.
func (x *Index) makeGroups(p entry) {
	if p.grouped() {
		s := x.groups(p)
		s.mix(0, pageGroups-1)
		s.resolve(p.kind(), x.words(p), 0, pageGroups-1)
	}
}

// fold turns a page whose blocks all have one owner into an entry again.
func (x *Index) fold(page uint64, e entry, size uint64) {
	n, run := e.kind().run(x.words(e), 0, size)
	if run < size {
		return
	}
	x.dir[page].Store(uint64(uniformEntry(ownerOf(e.owner(), n), e.page())))
}

// newPage allocates a page of zeros, with groups unless its numbers may be too large for them.
func (x *Index) newPage(k kind) entry {
	if k == wide {
		return x.newPlainPage(k)
	}
	return pageOf(x.arena.alloc(groupWords+forms[k].words)+groupUnits, k) | entryGrouped
}

func (x *Index) newPlainPage(k kind) entry {
	return pageOf(x.arena.alloc(forms[k].words), k)
}

func (s groups) set(g, n uint64) {
	word, bit := groupPlace(g)
	old := atomic.LoadUint64(&s[word])
	if fresh := old&^(mixed<<bit) | n<<bit; fresh != old {
		atomic.StoreUint64(&s[word], fresh)
	}
}

// mix sets the groups from first to last to mixed and reports whether any changed.
func (s groups) mix(first, last uint64) (more bool) {
	for g := first; g <= last; g++ {
		if s.at(g) != mixed {
			s.set(g, mixed)
			more = true
		}
	}
	return more
}

// mixed returns the number of mixed groups.
func (s groups) mixed() (n int) {
	const top, rest, one = 0x8080808080808080, 0x7f7f7f7f7f7f7f7f, 0x0101010101010101
	for i := range s {
		w := atomic.LoadUint64(&s[i])
		// The top bit of each byte of all ones: it is set, and the rest plus 1 carries into it.
		n += bits.OnesCount64(w & (w&rest + one) & top)
	}
	return n
}

// resolve gives the groups from first to last a number if all of their blocks have the same.
func (s groups) resolve(k kind, words []uint64, first, last uint64) {
	for g := first; g <= last; g++ {
		if n, run := k.run(words, g*groupBlocks, groupBlocks); run == groupBlocks && n < mixed {
			s.set(g, n)
		}
	}
}

// holds reports whether a page of this form and base can hold o.
func (k kind) holds(base, o Owner) bool {
	return o == 0 || o > base && o-base <= forms[k].max
}

// kindFor returns the smallest form that can hold 0 and the owners from low to high above base.
func kindFor(base, low, high Owner) kind {
	for k := tight; k < wide; k++ {
		if k.holds(base, low) && k.holds(base, high) {
			return k
		}
	}
	return wide
}

// raise raises count numbers from a block of the page on to n; higher numbers stay. The caller
// holds the page's lock and is the only writer, so a store needs no compare.
func (k kind) raise(words []uint64, at, count, n uint64) {
	f := &forms[k]
	all := n * f.ones
	i, place := k.place(at)
	for ; count > 0; i, place = i+1, 0 {
		here := min(f.per-place, count)
		mask := ^uint64(0) >> (64 - f.bits*here) << (f.bits * place)
		old := atomic.LoadUint64(&words[i])
		if fresh := f.greater(old, all, mask); fresh != old {
			atomic.StoreUint64(&words[i], fresh)
		}
		count -= here
	}
}

// greater returns the greater of each number of a and b within mask, and a elsewhere.
func (f *form) greater(a, b, mask uint64) uint64 {
	if a&mask == 0 {
		return a | b&mask
	}
	out := a
	for s := uint64(0); s < f.per*f.bits; s += f.bits {
		m := uint64(f.max) << s
		if m&mask != 0 && b&m > a&m {
			out = out&^m | b&m
		}
	}
	return out
}

// fill sets all numbers of a page to n.
func (k kind) fill(words []uint64, n uint64) {
	v := n * forms[k].ones
	for i := range words {
		atomic.StoreUint64(&words[i], v)
	}
}

// base returns the base of a page of this form, if it can be chosen freely.
func (k kind) base(free Owner) Owner {
	if k == wide {
		return 0
	}
	return free
}

// number returns o's number in a page, the inverse of ownerOf.
func number(base, o Owner) uint64 {
	if o == 0 {
		return 0
	}
	return uint64(o - base)
}
