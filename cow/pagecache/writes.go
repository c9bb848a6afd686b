package pagecache

import "sync/atomic"

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
