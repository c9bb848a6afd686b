package index

import (
	"math/bits"
	"sync/atomic"
)

// groupBlocks is how many blocks a group has: 64 KiB of a disk with blocks of 4 KiB.
// What is written together is mostly larger, so that nearly all lookups need no more
// than the groups' numbers, which are a thirteenth of a page and stay in the
// processor's cache where the page does not.
const (
	groupBlocks = 16
	pageGroups  = pageBlocks / groupBlocks
	groupWords  = pageGroups / 8

	// mixed instead of a number says that the blocks' own numbers tell.
	mixed = 1<<8 - 1
	// A page of more mixed groups is better off without them: most lookups would have
	// to look at two places.
	maxMixed = pageGroups / 4
)

// groups has a byte for each group of a page: the number that all its blocks have, or
// mixed. A group that is about to change is mixed before the first of its blocks'
// numbers is raised, and gets a number after the last: what a lookup finds, in either
// place, was so.
type groups []uint64

// groupPlace is where group g is: the word and the place of its lowest bit.
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

// run is how many blocks of the page have n from one on whose group has just been
// found to have it, at most max. That group is not looked at again: it may be mixed by
// now.
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

// mix makes the groups from first to last mixed and reports whether one was not.
func (s groups) mix(first, last uint64) (more bool) {
	for g := first; g <= last; g++ {
		if s.at(g) != mixed {
			s.set(g, mixed)
			more = true
		}
	}
	return more
}

// mixed counts the groups that are.
func (s groups) mixed() (n int) {
	const top, rest, one = 0x8080808080808080, 0x7f7f7f7f7f7f7f7f, 0x0101010101010101
	for i := range s {
		w := atomic.LoadUint64(&s[i])
		// In the top bit of each byte of all ones: it is set, and 1 more than the rest
		// carries into it.
		n += bits.OnesCount64(w & (w&rest + one) & top)
	}
	return n
}

// resolve gives those groups from first to last a number whose blocks have one.
func (s groups) resolve(k kind, words []uint64, first, last uint64) {
	for g := first; g <= last; g++ {
		if n, run := k.run(words, g*groupBlocks, groupBlocks); run == groupBlocks && n < mixed {
			s.set(g, n)
		}
	}
}
