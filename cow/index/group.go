package index

import (
	"math/bits"
	"sync/atomic"
)

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

func (s groups) set(g, n uint64) {
	word, bit := groupPlace(g)
	old := atomic.LoadUint64(&s[word])
	if fresh := old&^(mixed<<bit) | n<<bit; fresh != old {
		atomic.StoreUint64(&s[word], fresh)
	}
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

// ownerOf returns the owner of a number in a page.
func ownerOf(base Owner, n uint64) Owner {
	if n == 0 {
		return 0
	}
	return base + Owner(n)
}

// number returns o's number in a page, the inverse of ownerOf.
func number(base, o Owner) uint64 {
	if o == 0 {
		return 0
	}
	return uint64(o - base)
}
