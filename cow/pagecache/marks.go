package pagecache

import (
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// What a read or a write by system call tells a Mapping.

// writes counts the writes to a file, so that a copy from its mapping notices a write in flight: it
// could see a part of a sector old and a part new. All writes to a piece of pieceShift share a
// counter with those to other pieces.
//
// A counter has the number of writes in flight in its lower half, and of those begun in its upper
// half. Each has a cache line: queues that write do not disturb each other.
type writes struct {
	counters [64]struct {
		atomic.Uint64
		_ [56]byte
	}
}

const (
	pieceShift = 15 // bits of an offset; cow writes 32 KiB at a time
	oneBegun   = 1<<32 + 1
	oneEnded   = ^uint64(0)
	inFlight   = 1<<32 - 1
)

// add adds to the counters of all pieces that n bytes (> 0) from off touch. A long range uses each
// counter once.
func (w *writes) add(off, n int64, what uint64) {
	first, last := off>>pieceShift, (off+n-1)>>pieceShift
	for i := first; i <= min(last, first+int64(len(w.counters))-1); i++ {
		w.counters[uint64(i)%uint64(len(w.counters))].Add(what)
	}
}

// version returns a number that differs from the one before if a write to the n bytes from off has
// begun since. quiet: none is in flight.
func (w *writes) version(off, n int64) (sum uint64, quiet bool) {
	if n <= 0 {
		return 0, true
	}
	first, last := off>>pieceShift, (off+n-1)>>pieceShift
	quiet = true
	for i := first; i <= min(last, first+int64(len(w.counters))-1); i++ {
		v := w.counters[uint64(i)%uint64(len(w.counters))].Load()
		sum += v
		quiet = quiet && v&inFlight == 0
	}
	return sum, quiet
}

// BeginWrite announces a write of n bytes at off to a file that was mapped as written.
func (m *Mapping) BeginWrite(off, n int64) { m.writes.add(off, n, oneBegun) }

// EndWrite ends what BeginWrite began with the same arguments. The first written bytes are in the
// page cache now.
func (m *Mapping) EndWrite(off, n, written int64) {
	m.writes.add(off, n, oneEnded)
	first, end := pagesInside(off, written)
	m.mark(first, end-first)
}

// MarkResident records that the n bytes from off have just been read, and are in the page cache.
func (m *Mapping) MarkResident(off, n int64) {
	if !m.readsFillHoles {
		m.mark(off, n)
	}
}

// MarkFound is MarkResident for bytes that were in the page cache before: their neighbours may be
// there too, and are looked for.
func (m *Mapping) MarkFound(off, n int64) {
	m.MarkResident(off, n)
	if off >= 0 && n > 0 && off < int64(len(m.mem)) && m.disabledUntil.Load() == 0 {
		m.lookAround(off)
	}
}

// mark does nothing while the mapping is disabled: the pages may be evicted before it is enabled
// again.
func (m *Mapping) mark(off, n int64) {
	if m.disabledUntil.Load() != 0 || off < 0 || n <= 0 || off >= int64(len(m.mem)) {
		return
	}
	n = min(n, int64(len(m.mem))-off)
	m.touch(off, n)
	m.pages.set(off, n)
}

// MarkResidentInside is MarkResident for the pages that lie wholly within the n bytes.
func (m *Mapping) MarkResidentInside(off, n int64) {
	first, end := pagesInside(off, n)
	m.MarkResident(first, end-first)
}

// pagesInside returns the whole pages within n bytes from off, in bytes.
func pagesInside(off, n int64) (first, end int64) {
	const page = 1 << pageShift
	return (off + page - 1) &^ (page - 1), (off + n) &^ (page - 1)
}

// Unmark clears the marks of all pages that n bytes from off touch.
func (m *Mapping) Unmark(off, n int64) {
	if off >= 0 && n > 0 && off < int64(len(m.mem)) {
		m.pages.unset(off, min(n, int64(len(m.mem))-off))
	}
}

// touch counts the memory of the marks and page tables of n bytes (> 0) from off.
func (m *Mapping) touch(off, n int64) {
	for region := off >> regionShift; region <= (off+n-1)>>regionShift; region++ {
		w, bit := &m.memory.regions[region/regionsPerWord], uint64(1)<<(region%regionsPerWord)
		if w.Load()&bit != 0 {
			continue
		}
		switch old := w.Or(bit); {
		case old == 0:
			m.memory.bytes.Add(2 << pageShift)
			m.startTimer()
		case old&bit == 0:
			m.memory.bytes.Add(1 << pageShift)
		}
	}
}

// pageShift is log2 of the page size of one bit, in bytes.
const pageShift = 12

// residency is one bit a page, in anonymous memory that is resident only where bits are set.
type residency struct {
	words []uint64
	mem   []byte
}

func (r *residency) init(length int64) (err error) {
	r.words, r.mem, err = mapWords(int((length + 64<<pageShift - 1) / (64 << pageShift)))
	return err
}

// has reports whether the bits of all pages of n bytes from off are set.
func (r *residency) has(off, n int64) bool {
	if n == 0 {
		return true
	}
	for page, last := uint64(off)>>pageShift, uint64(off+n-1)>>pageShift; page <= last; {
		word, mask := span(page, last)
		if atomic.LoadUint64(&r.words[word])&mask != mask {
			return false
		}
		page = (word + 1) * 64
	}
	return true
}

// set sets the bits of all pages of n bytes from off.
func (r *residency) set(off, n int64) {
	for page, last := uint64(off)>>pageShift, uint64(off+n-1)>>pageShift; page <= last; {
		word, mask := span(page, last)
		if w := &r.words[word]; atomic.LoadUint64(w)&mask != mask {
			atomic.OrUint64(w, mask)
		}
		page = (word + 1) * 64
	}
}

// unset clears the bits of all pages of n bytes from off.
func (r *residency) unset(off, n int64) {
	for page, last := uint64(off)>>pageShift, uint64(off+n-1)>>pageShift; page <= last; {
		word, mask := span(page, last)
		if w := &r.words[word]; atomic.LoadUint64(w)&mask != 0 {
			atomic.AndUint64(w, ^mask)
		}
		page = (word + 1) * 64
	}
}

// span returns the word with page's bit, and in it the bits from page to last.
func span(page, last uint64) (word, mask uint64) {
	word = page / 64
	mask = ^uint64(0) << (page % 64)
	if end := word*64 + 63; last < end {
		mask &= ^uint64(0) >> (end - last)
	}
	return word, mask
}

// clear clears all bits: the kernel takes the memory and provides zeros later.
func (r *residency) clear() { _ = unix.Madvise(r.mem, unix.MADV_DONTNEED) }

func (r *residency) free() {
	if r.mem != nil {
		_ = unix.Munmap(r.mem)
	}
	r.mem, r.words = nil, nil
}
