package layer

import (
	"fmt"
	"math/bits"
	"runtime"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Bitmap is a layer's map in memory: bit i of word w is block 64·w+i. Bits only go from 0 to 1.
// Add, Set, Test, Count and TakeDirty may run concurrently.
//
// The words lie in a private anonymous mapping of which only used pages are resident: at most 32
// MiB per TiB of 4 KiB blocks. They alone say who owns a block: neither the map file nor the shared
// map is read again. The mapping is unmapped when the Bitmap becomes unreachable, so that a view
// that still has one is safe; methods end with KeepAlive for this reason.
type Bitmap struct {
	blocks uint64
	words  []uint64 // whole map pages; bits beyond blocks stay 0
	count  atomic.Uint64

	// Marks of the map pages that changed since TakeDirty: bit i of dirty[d] is page 64·d+i, and
	// bit i of summary[s] says that dirty[64·s+i] is not zero. So TakeDirty costs as much as there
	// are dirty pages.
	dirty, summary []uint64
	// touched marks the pages that may hold a set bit.
	touched []uint64
	// rewrite is set by markTouched until a flush has written these pages.
	rewrite atomic.Bool

	// shared, unless nil, has the bits that are not durable, for the next process. locks order,
	// page by page, the setting of its bits and the release of their memory.
	shared *sharedMap
	locks  [pageLocks]pageLock
	// punched is set by MarkPunched and cleared when a flush begins; punchedMu orders the stores of
	// the shared map's word for it.
	punched   atomic.Bool
	punchedMu sync.Mutex
}

// pageLocks is the number of locks that the pages of a map share.
const pageLocks = 64

// pageLock is the lock of the pages of a shared map whose numbers are equal modulo pageLocks.
type pageLock struct {
	sync.Mutex
	released uint64 // number of times that a page's memory was freed
}

// DirtyPage is a copy of one 4 KiB page of a map.
type DirtyPage struct {
	Page  uint64 // of the bitmap, from 0
	Words [wordsPerPage]uint64
}

// NewBitmap returns an empty bitmap for a number of blocks.
func NewBitmap(blocks uint64) (*Bitmap, error) {
	pages := max(mapPages(blocks), 1)
	words, mapping, err := mapWords(pages * wordsPerPage)
	if err != nil {
		return nil, fmt.Errorf("allocate a map of %d blocks: %w", blocks, err)
	}
	marks := (uint64(len(words))/wordsPerPage + 63) / 64
	b := &Bitmap{
		blocks:  blocks,
		words:   words,
		dirty:   make([]uint64, marks),
		summary: make([]uint64, (marks+63)/64),
		touched: make([]uint64, marks),
	}
	runtime.AddCleanup(b, func(mapping []byte) { _ = unix.Munmap(mapping) }, mapping)
	return b, nil
}

// Blocks returns the number of blocks.
func (b *Bitmap) Blocks() uint64 { return b.blocks }

// Count returns the number of set bits.
func (b *Bitmap) Count() uint64 { return b.count.Load() }

// Test reports whether the bit of block is set; false beyond the last block.
func (b *Bitmap) Test(block uint64) bool {
	if block >= b.blocks {
		return false
	}
	set := atomic.LoadUint64(&b.words[block/64])>>(block%64)&1 != 0
	runtime.KeepAlive(b)
	return set
}

// Add is Set for blocks written by a request that is about to be acknowledged. It sets at least one
// bit, all in one page of the map, and returns their number. shared: they are in the shared map and
// survive this process. Otherwise, without a shared map or memory for it, they must be flushed
// before the request is acknowledged.
func (b *Bitmap) Add(first, n uint64) (added uint64, shared bool) {
	s := b.shared
	if s == nil || s.broken.Load() {
		b.Set(first, n)
		return n, false
	}
	page := first / blocksPerPage
	n = min(n, (page+1)*blocksPerPage-first)
	l := &b.locks[page%pageLocks]
	for {
		l.Lock()
		if s.reservedPage(page) {
			break
		}
		released := l.released
		l.Unlock()
		// Not under the lock: the kernel may have to reclaim memory.
		if s.file.Reserve(s.offset(page), MapPageSize) != nil {
			b.Set(first, n)
			return n, false
		}
		l.Lock()
		if l.released == released { // otherwise the memory of this page may have been freed again
			s.markReserved(page)
			break
		}
		l.Unlock()
	}
	defer l.Unlock()
	shared = s.set(page, first%blocksPerPage, n) == nil
	b.Set(first, n)
	return n, shared
}

// Shared reports whether bits that Add sets survive this process.
func (b *Bitmap) Shared() bool { return b.shared != nil && !b.shared.broken.Load() }

// MarkPunched records that blocks of the head are about to be discarded, or have been: a hole under
// a bit that is not flushed is then no sign of lost data.
func (b *Bitmap) MarkPunched() {
	s := b.shared
	if s == nil || s.broken.Load() || b.punched.Load() {
		return
	}
	b.punchedMu.Lock()
	defer b.punchedMu.Unlock()
	if guarded(func() { s.setWord(sharedHoles, 1) }) != nil {
		s.invalidate()
	}
	b.punched.Store(true)
}

// beginFlush is called before the bits of a flush are taken.
func (b *Bitmap) beginFlush() {
	if b.punched.Load() {
		b.punched.Store(false)
	}
}

// flushed removes from the shared map the bits of these pages, which TakeDirty returned since
// beginFlush and which are durable now.
func (b *Bitmap) flushed(pages []DirtyPage) {
	b.rewrite.Store(false)
	s := b.shared
	if s == nil || s.broken.Load() {
		return
	}
	for i := range pages {
		page, durable := pages[i].Page, pages[i].Words[:]
		littleEndian(durable) // in the order of TakeDirty: WriteMap has swapped the bytes
		l := &b.locks[page%pageLocks]
		l.Lock()
		if !s.reservedPage(page) {
			l.Unlock()
			continue
		}
		if s.pages.Load() > maxKeptPages &&
			atomic.LoadUint64(&b.dirty[page/64])&(1<<(page%64)) == 0 {
			l.released++
			s.release(page)
		} else if s.clear(page, durable) != nil {
			s.invalidate()
		}
		l.Unlock()
	}
	b.punchedMu.Lock()
	defer b.punchedMu.Unlock()
	if !b.punched.Load() && guarded(func() { s.setWord(sharedHoles, 0) }) != nil {
		s.invalidate()
	}
}

// Set sets the bits of n blocks from first; blocks beyond the last are ignored. After it returns,
// the next TakeDirty covers all of them, also those that another goroutine is setting at the same
// time.
func (b *Bitmap) Set(first, n uint64) {
	if first >= b.blocks {
		return
	}
	end := first + min(n, b.blocks-first)
	var added int
	for first < end {
		page := first / blocksPerPage
		pageEnd := min(end, (page+1)*blocksPerPage)
		for first < pageEnd {
			bit := first % 64
			run := min(64-bit, pageEnd-first)
			mask := (^uint64(0) >> (64 - run)) << bit
			if w := &b.words[first/64]; atomic.LoadUint64(w)&mask != mask {
				old := atomic.OrUint64(w, mask)
				added += bits.OnesCount64(mask &^ old)
			}
			first += run
		}
		b.markDirty(page)
	}
	if added != 0 {
		b.count.Add(uint64(added))
	}
	runtime.KeepAlive(b)
}

// markDirty marks a page whose bits have just been set. Each level is set after the level below it,
// and TakeDirty clears them in the opposite order. So a mark that is found set here is seen by a
// TakeDirty that copies the page after the bits were set.
func (b *Bitmap) markDirty(page uint64) {
	d, mask := page/64, uint64(1)<<(page%64)
	if atomic.LoadUint64(&b.dirty[d])&mask == 0 {
		if atomic.LoadUint64(&b.touched[d])&mask == 0 {
			atomic.OrUint64(&b.touched[d], mask)
		}
		atomic.OrUint64(&b.dirty[d], mask)
	}
	s, mask := d/64, uint64(1)<<(d%64)
	if atomic.LoadUint64(&b.summary[s])&mask == 0 {
		atomic.OrUint64(&b.summary[s], mask)
	}
}

// TakeDirty appends a copy of each page that changed since the last call to dst, in ascending
// order, and clears the marks. Every bit that was set before the call is in a copy or was in an
// earlier one. It must not run concurrently with itself.
func (b *Bitmap) TakeDirty(dst []DirtyPage) []DirtyPage {
	for s := range b.summary {
		for dirtyWords := takeWord(&b.summary[s]); dirtyWords != 0; dirtyWords &= dirtyWords - 1 {
			d := uint64(s*64 + bits.TrailingZeros64(dirtyWords))
			for pages := takeWord(&b.dirty[d]); pages != 0; pages &= pages - 1 {
				page := d*64 + uint64(bits.TrailingZeros64(pages))
				dst = append(dst, DirtyPage{Page: page})
				b.read(dst[len(dst)-1].Words[:], page*wordsPerPage)
			}
		}
	}
	return dst
}

// MarkDirty marks pages that could not be written as dirty again.
func (b *Bitmap) MarkDirty(pages []DirtyPage) {
	for i := range pages {
		b.markDirty(pages[i].Page)
	}
}

// markTouched marks every page that may hold a set bit as dirty.
func (b *Bitmap) markTouched() {
	for page, ok := b.nextTouched(0); ok; page, ok = b.nextTouched(page + 1) {
		b.markDirty(page)
		b.rewrite.Store(true)
	}
}

func takeWord(word *uint64) uint64 {
	if atomic.LoadUint64(word) == 0 {
		return 0
	}
	return atomic.SwapUint64(word, 0)
}

// read copies words from first on; words beyond the end of the map are zero.
func (b *Bitmap) read(dst []uint64, first uint64) {
	have := uint64(0)
	if first < uint64(len(b.words)) {
		have = min(uint64(len(dst)), uint64(len(b.words))-first)
	}
	for i := range have {
		dst[i] = atomic.LoadUint64(&b.words[first+i])
	}
	clear(dst[have:])
	runtime.KeepAlive(b)
}

// load fills a page of a bitmap that no other goroutine uses yet.
func (b *Bitmap) load(page uint64, words []uint64) {
	copy(b.words[page*wordsPerPage:], words)
	added := 0
	for _, w := range words {
		added += bits.OnesCount64(w)
	}
	b.touched[page/64] |= 1 << (page % 64)
	b.count.Add(uint64(added))
	runtime.KeepAlive(b)
}

// nextTouched returns the first page, from page on, that may hold a set bit, or false.
func (b *Bitmap) nextTouched(page uint64) (uint64, bool) {
	for d := page / 64; d < uint64(len(b.touched)); d++ {
		marks := atomic.LoadUint64(&b.touched[d])
		if d == page/64 {
			marks &= ^uint64(0) << (page % 64)
		}
		if marks != 0 {
			return d*64 + uint64(bits.TrailingZeros64(marks)), true
		}
	}
	return 0, false
}

// merge sets bits that are not durable in a page that no other goroutine uses yet.
func (b *Bitmap) merge(page uint64, words []uint64) {
	_ = eachBitRun(words, func(first, n uint64) error {
		b.Set(page*blocksPerPage+first, n)
		return nil
	})
}

// eachBitRun calls f for each run of set bits within one word, in ascending order; it stops at the
// first error.
func eachBitRun(words []uint64, f func(first, n uint64) error) error {
	for i, w := range words {
		for w != 0 {
			start := uint64(bits.TrailingZeros64(w))
			run := uint64(bits.TrailingZeros64(^(w >> start)))
			if err := f(uint64(i)*64+start, run); err != nil {
				return err
			}
			if start+run == 64 {
				break
			}
			w &^= 1<<(start+run) - 1
		}
	}
	return nil
}
