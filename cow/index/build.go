package index

import (
	"errors"
	"fmt"
	"io"
	"math/bits"
	"runtime"
	"sync"
	"sync/atomic"
)

// Source is one layer's bitmap as 64-bit words: bit i of word w is block 64·w+i, set if the layer
// owns it. Its methods are called concurrently.
type Source interface {
	// Words fills dst with the words from first on; words beyond the bitmap are zero.
	Words(dst []uint64, first uint64) error
	// Next returns the first range of words [start, end) at or after word that may hold a set bit,
	// or io.EOF. All words outside the ranges are zero.
	Next(word uint64) (start, end uint64, err error)
}

const (
	pageWords = pageBlocks / 64 // bitmap words per page of the index

	// A window is the unit of building: small enough for its owners to stay in the CPU's cache,
	// large enough for a read of each layer to pay.
	windowPages  = 32
	windowWords  = windowPages * pageWords
	windowBlocks = windowPages * pageBlocks
	// batch is the number of windows that a worker takes at a time.
	batch = 8
)

// Build makes the index of a stack. sources are its layers, oldest first: sources[i] is owner i+1.
// It works on all processors, window by window, and in each window from the newest layer down, so
// that each block is written once.
func Build(blocks uint64, sources []Source) (*Index, error) {
	if len(sources) > 1<<16-1 {
		return nil, fmt.Errorf("build index: expected at most %d layers, found %d", 1<<16-1,
			len(sources))
	}
	x := New(blocks)
	windows := (blocks + windowBlocks - 1) / windowBlocks
	workers := min(uint64(runtime.GOMAXPROCS(0)), (windows+batch-1)/batch)

	var next atomic.Uint64
	errs := make([]error, workers)
	var wg sync.WaitGroup
	for i := range errs {
		// Ends when no window is left, or at its first error.
		wg.Go(func() {
			b := builder{x: x, sources: sources, cursors: make([]cursor, len(sources))}
			errs[i] = b.run(&next, windows)
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		x.Close()
		return nil, fmt.Errorf("build index: %w", err)
	}
	return x, nil
}

// builder is one worker of Build.
type builder struct {
	x       *Index
	sources []Source
	cursors []cursor

	words  [windowWords]uint64 // of the current layer
	done   [windowWords]uint64 // blocks that have their owner
	owners [windowBlocks]Owner
	pages  [windowPages]span
	groups [groupWords]uint64 // of the current page
}

// span is the lowest and the highest owner other than 0 in a page.
type span struct{ low, high Owner }

// cursor is the range of words that Source.Next returned last.
type cursor struct {
	start, end uint64
	eof        bool
}

// within reports whether a source may have a bit in the words [first, end). first must not decrease
// from call to call.
func (c *cursor) within(s Source, first, end uint64) (bool, error) {
	for !c.eof && c.end <= first {
		var err error
		c.start, c.end, err = s.Next(first)
		if err == io.EOF {
			c.eof = true
		} else if err != nil {
			return false, err
		}
	}
	return !c.eof && c.start < end, nil
}

func (b *builder) run(next *atomic.Uint64, windows uint64) error {
	for {
		first := next.Add(batch) - batch
		if first >= windows {
			return nil
		}
		for w := first; w < min(first+batch, windows); w++ {
			if err := b.window(w * windowPages); err != nil {
				return err
			}
		}
	}
}

// window builds the pages of the window that starts at page first.
func (b *builder) window(first uint64) error {
	firstWord := first * pageWords
	count := min(windowWords, (b.x.blocks+63)/64-firstWord)
	used := false
	for i := len(b.sources) - 1; i >= 0; i-- {
		ok, err := b.cursors[i].within(b.sources[i], firstWord, firstWord+count)
		if err != nil {
			return fmt.Errorf("layer %d: %w", i+1, err)
		}
		if !ok {
			continue
		}
		if !used {
			used = true
			b.reset(firstWord)
		}
		if err := b.sources[i].Words(b.words[:count], firstWord); err != nil {
			return fmt.Errorf("layer %d: %w", i+1, err)
		}
		b.apply(b.words[:count], Owner(i+1))
	}
	if !used {
		return nil
	}
	for p := range min(windowPages, uint64(len(b.x.dir))-first) {
		b.x.dir[first+p].Store(uint64(b.encode(p)))
	}
	return nil
}

// reset clears the state of the last window. Blocks beyond the last count as done, so that a bit
// there is ignored and the last page can have one owner.
func (b *builder) reset(firstWord uint64) {
	clear(b.done[:])
	clear(b.owners[:])
	clear(b.pages[:])
	if left := b.x.blocks - firstWord*64; left < windowBlocks {
		b.done[left/64] = ^uint64(0) << (left % 64)
		for i := left/64 + 1; i < windowWords; i++ {
			b.done[i] = ^uint64(0)
		}
	}
}

// apply gives o the layer's blocks that no newer layer owns.
func (b *builder) apply(words []uint64, o Owner) {
	for i, w := range words {
		w &^= b.done[i]
		if w == 0 {
			continue
		}
		b.done[i] |= w
		s := &b.pages[i/pageWords]
		s.low = o
		if s.high == 0 {
			s.high = o
		}
		owners := b.owners[i*64 : i*64+64]
		if w == ^uint64(0) {
			for k := range owners {
				owners[k] = o
			}
			continue
		}
		for ; w != 0; w &= w - 1 {
			owners[bits.TrailingZeros64(w)] = o
		}
	}
}

// encode makes page p of the window.
func (b *builder) encode(p uint64) entry {
	s := b.pages[p]
	if s.high == 0 {
		return 0
	}
	if s.low == s.high && b.full(p) {
		return uniformEntry(s.high, 0)
	}
	base := s.low - 1
	k := kindFor(base, s.low, s.high)
	base = k.base(base)
	owners := b.owners[p*pageBlocks : (p+1)*pageBlocks]
	var page entry
	if k != wide && b.packGroups(owners, base) {
		page = b.x.newPage(k)
		copy(b.x.groups(page), b.groups[:])
	} else {
		page = b.x.newPlainPage(k)
	}
	pack(b.x.words(page), owners, base, &forms[k])
	return pagedEntry(base, page)
}

// packGroups makes the groups of a page and reports whether they are worth keeping.
func (b *builder) packGroups(owners []Owner, base Owner) bool {
	clear(b.groups[:])
	count := 0
	for g := range uint64(pageGroups) {
		all := (*[groupBlocks]Owner)(owners[g*groupBlocks:])
		n := uint64(numberBranchless(base, all[0]))
		var differ Owner
		for _, o := range all[1:] {
			differ |= o ^ all[0]
		}
		if differ != 0 {
			n = mixed
			count++
		}
		word, bit := groupPlace(g)
		b.groups[word] |= n << bit
	}
	return count <= maxMixed
}

// pack writes the owners of a page.
func pack(words []uint64, owners []Owner, base Owner, f *form) {
	for i := range words {
		n := min(int(f.per), len(owners))
		var w, at uint64
		for _, o := range owners[:n] {
			w |= uint64(numberBranchless(base, o)) << (at & 63) // & 63: no test for a shift of 64
			at += f.bits
		}
		words[i], owners = w, owners[n:]
	}
}

// full reports whether every block of page p of the window has an owner.
func (b *builder) full(p uint64) bool {
	for _, w := range b.done[p*pageWords : (p+1)*pageWords] {
		if w != ^uint64(0) {
			return false
		}
	}
	return true
}

// numberBranchless is number without a branch that could be mispredicted: the mask of owner 0 is
// empty, so it gives 0.
func numberBranchless(base, o Owner) Owner {
	mask := Owner(int16(o|-o) >> 15)
	return (o - base) & mask
}
