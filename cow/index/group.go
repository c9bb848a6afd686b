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
