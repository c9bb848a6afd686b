package cowtest

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
)

// Model knows, for every sector of a disk, the writes that may be its content, while any number of
// operations overlap in time.
//
// A read may see a write unless another write began after it had ended and itself ended before the
// read began. That is a regular register for each sector. CheckIdle then decides between open
// alternatives: content that an idle disk shows once it must show from then on.
type Model struct {
	clock   atomic.Uint64
	content atomic.Uint64
	groups  []group
}

// group is a run of sectors under one lock.
type group struct {
	mu      sync.Mutex
	sectors [groupSectors][]*Write
}

const groupSectors = 64

// Write is one write, discard or write-zeroes in the model.
type Write struct {
	Content Content
	What    string // for messages
	start   uint64
	end     atomic.Uint64 // 0: in flight
}

// NewModel returns the model of a disk of size bytes: the first base bytes have the content of the
// base, and the rest is zeros. Both numbers are multiples of 512.
func NewModel(size, base int64) *Model {
	m := &Model{groups: make([]group, (size/SectorSize+groupSectors-1)/groupSectors)}
	m.content.Store(uint64(firstWrite))
	zeros, below := &Write{Content: Zeros, What: "nothing"}, &Write{Content: BaseContent,
		What: "base"}
	zeros.end.Store(m.clock.Add(1))
	below.end.Store(m.clock.Load())
	for s := range size / SectorSize {
		w := zeros
		if s*SectorSize < base {
			w = below
		}
		g := &m.groups[s/groupSectors]
		g.sectors[s%groupSectors] = []*Write{w}
	}
	return m
}

// NextContent returns a content that no write has had.
func (m *Model) NextContent() Content { return Content(m.content.Add(1)) }

// Begin records a write of c to the given byte ranges, just before its submission. Ranges are pairs
// of offset and length.
func (m *Model) Begin(c Content, what string, ranges ...[2]int64) *Write {
	w := &Write{Content: c, What: what, start: m.clock.Add(1)}
	for _, r := range ranges {
		m.each(r[0], r[1], func(_ int64, list *[]*Write) { *list = append(*list, w) })
	}
	return w
}

// End records the completion of a write.
func (m *Model) End(w *Write) { w.end.Store(m.clock.Add(1)) }

// Now returns the time for Check; call it before the read is submitted.
func (m *Model) Now() uint64 { return m.clock.Add(1) }

// Check checks p, which a read at off has returned that began at start and has completed.
func (m *Model) Check(p []byte, off int64, start uint64) error {
	var err error
	m.each(off, int64(len(p)), func(sector int64, list *[]*Write) {
		if err == nil {
			at := sector*SectorSize - off
			_, err = check(p[at:at+SectorSize], sector, *list, start)
		}
	})
	return err
}

// CheckIdle is Check of an idle disk's content, which then becomes the only legal one.
func (m *Model) CheckIdle(p []byte, off int64) error {
	now := m.Now()
	var err error
	m.each(off, int64(len(p)), func(sector int64, list *[]*Write) {
		if err != nil {
			return
		}
		at := sector*SectorSize - off
		var w *Write
		if w, err = check(p[at:at+SectorSize], sector, *list, now); err == nil {
			clear((*list)[1:])
			*list = append((*list)[:0], w)
		}
	})
	return err
}

// check finds the write that a sector shows. A sector may be torn, even within a word, between
// writes that are in flight during the read (the page cache reads without a lock), as long as each
// part is legal; never when the disk is idle.
func check(p []byte, sector int64, list []*Write, start uint64) (*Write, error) {
	// The latest begin of a write that ended before the read began: writes that ended before that
	// cannot show any more.
	var latest uint64
	for _, w := range list {
		if end := w.end.Load(); end != 0 && end < start {
			latest = max(latest, w.start)
		}
	}
	var legal []*Write
	inFlight := false // one of them was in flight during the read
	for _, w := range list {
		if end := w.end.Load(); end == 0 || end >= latest {
			legal = append(legal, w)
			inFlight = inFlight || end == 0 || end > start
		}
	}
	var shown *Write
	var found []Content
	overlap := false
	for at := 0; at < len(p); at += 8 {
		word := binary.LittleEndian.Uint64(p[at:])
		w := writeOf(word, sector, legal)
		if w == nil && inFlight && mixed(word, sector, legal) {
			overlap = true
			continue
		}
		if w == nil {
			return nil, illegalContent(p, sector, list, start)
		}
		if end := w.end.Load(); end == 0 || end > start {
			overlap = true
		}
		if w != shown {
			found = append(found, w.Content)
		}
		shown = w
	}
	if len(found) > 1 && !overlap {
		return nil, fmt.Errorf("sector %d is torn between writes %d and nothing was in flight\n%s",
			sector, found, history(list, start))
	}
	if shown == nil {
		shown = legal[len(legal)-1] // torn everywhere, during a write
	}
	return shown, nil
}

// writeOf returns the last of the writes that stamps sectors with a word.
func writeOf(word uint64, sector int64, list []*Write) (found *Write) {
	for _, w := range list {
		if stampOf(sector, w.Content) == word {
			found = w
		}
	}
	return found
}

// mixed reports whether each byte of a word is that of one of the writes.
func mixed(word uint64, sector int64, list []*Write) bool {
	for shift := 0; shift < 64; shift += 8 {
		if !slices.ContainsFunc(list,
			func(w *Write) bool {
				return byte(stampOf(sector, w.Content)>>shift) == byte(word>>shift)
			}) {
			return false
		}
	}
	return true
}

// illegalContent describes what is wrong with a sector.
func illegalContent(p []byte, sector int64, list []*Write, start uint64) error {
	found, err := Identify(p, sector, nil)
	if err != nil {
		return fmt.Errorf("%w\n%s", err, history(list, start))
	}
	return fmt.Errorf("sector %d shows writes %d, one of which is not legal for a read begun at %d\n%s", sector, found, start, history(list, start))
}

func history(list []*Write, start uint64) string {
	var b strings.Builder
	for _, w := range list {
		fmt.Fprintf(&b, "  [%d, %d] write %d: %s\n", w.start, w.end.Load(), w.Content, w.What)
	}
	fmt.Fprintf(&b, "  [%d] this read", start)
	return b.String()
}

// each calls f for the sectors of a byte range, each under its group's lock.
func (m *Model) each(off, n int64, f func(sector int64, list *[]*Write)) {
	for s, end := off/SectorSize, (off+n)/SectorSize; s < end; {
		g := &m.groups[s/groupSectors]
		g.mu.Lock()
		for stop := min(end, (s/groupSectors+1)*groupSectors); s < stop; s++ {
			f(s, &g.sectors[s%groupSectors])
		}
		g.mu.Unlock()
	}
}
