package pagecache

import (
	"sync"
	"sync/atomic"
	"time"
)

// idleTime is how long a mapping keeps its marks and page tables after its last use. Without them
// it needs next to no memory, and a read finds the pages again: see look.go.
const idleTime = time.Minute

// memory is what a Mapping has resident: marks, and page tables, which need as much as a 512th of
// the bytes that were read. The pages themselves are the page cache's.
type memory struct {
	used    atomic.Bool     // since the timer last looked
	regions []atomic.Uint64 // bit r of word w: region 64 w + r has marks
	bytes   atomic.Int64

	mu     sync.Mutex
	timer  *time.Timer // runs while there are marks; nil: not needed yet
	runs   bool
	closed bool
}

// One word of memory.regions is one page of marks.
const regionsPerWord = 1 << pageShift * 8 >> (regionShift - pageShift)

func (r *memory) init(length int64) {
	r.regions = make([]atomic.Uint64, (length-1)>>regionShift/regionsPerWord+1)
}

// Memory returns the bytes of memory that marks and page tables have resident at most.
func (m *Mapping) Memory() int64 { return m.memory.bytes.Load() }

func (m *Mapping) startTimer() {
	r := &m.memory
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.runs || r.closed:
		return
	case r.timer == nil:
		r.timer = time.AfterFunc(idleTime, m.expire)
	default:
		r.timer.Reset(idleTime)
	}
	r.runs = true
}

// expire runs on a goroutine of the timer.
func (m *Mapping) expire() {
	r := &m.memory
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return
	}
	if r.used.Load() {
		r.used.Store(false)
		r.timer.Reset(idleTime)
		return
	}
	r.runs = false
	m.clear()
	_ = dropPageTables(m.mem) // else they stay until the file is closed
}

// clear clears all marks.
func (m *Mapping) clear() {
	for w := range m.memory.regions {
		m.memory.regions[w].Store(0)
	}
	m.memory.bytes.Store(0)
	m.pages.clear()
	for n := range m.looks.misses {
		m.looks.misses[n].Store(0)
	}
}

// stopTimer returns when expire does not run and will not run any more.
func (r *memory) stopTimer() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	if r.timer != nil {
		r.timer.Stop()
	}
}
