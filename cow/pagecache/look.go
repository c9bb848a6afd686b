package pagecache

import (
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// A page of the page cache that this process has never read has no mark: its first read is a system
// call, which costs as much as four copies. So a read by system call that found its page in memory
// makes a goroutine look which pages around are in memory too, mark them, and map them: the thread
// of the queue takes no page fault for them.

const (
	regionShift = 21 // bits of an offset: what one page of the page table maps
	maxLooks    = 2  // goroutines of one mapping at once
	// Shorter runs are mapped when they are used: the kernel maps 16 pages a fault.
	populateFrom = 16 // pages
)

// looks are the goroutines of a Mapping that look for resident pages.
type looks struct {
	allowed bool            // the kernel tells this process which pages of the file are resident
	misses  []atomic.Uint32 // reads by system call that found their page in memory, by region
	running atomic.Int32
	ended   sync.WaitGroup
}

func (l *looks) init(length int64, allowed bool) {
	if l.allowed = allowed; allowed {
		l.misses = make([]atomic.Uint32, (length-1)>>regionShift+1)
	}
}

// lookAround has the region of off looked at, at its 1st, 2nd, 4th, 8th ... read by system call:
// more of its pages may have come meanwhile.
func (m *Mapping) lookAround(off int64) {
	if !m.looks.allowed {
		return
	}
	region := off >> regionShift
	misses := &m.looks.misses[region]
	if n := misses.Add(1); n&(n-1) != 0 {
		return
	}
	if m.looks.running.Add(1) > maxLooks {
		m.looks.running.Add(-1)
		misses.Add(^uint32(0)) // the next read tries again
		return
	}
	m.looks.ended.Add(1)
	go m.look(region)
}

// look marks and maps the resident pages of a region.
func (m *Mapping) look(region int64) {
	defer m.looks.ended.Done()
	defer m.looks.running.Add(-1)
	const page = 1 << pageShift
	start := region << regionShift
	end := min(start+1<<regionShift, int64(len(m.mem)))
	var resident [1 << (regionShift - pageShift)]byte
	pages := (end - start + page - 1) / page
	if mincore(m.mem[start:end], &resident[0]) != nil {
		return
	}
	for first := int64(0); first < pages; {
		n := int64(0)
		for first+n < pages && resident[first+n]&1 != 0 {
			n++
		}
		if off := start + first*page; n > 0 {
			if n >= populateFrom {
				// Kernels before 5.14 cannot: page faults do it.
				_ = unix.Madvise(m.mem[off:min(off+n*page, end)], unix.MADV_POPULATE_READ)
			}
			m.mark(off, n*page)
		}
		first += n + 1
	}
}

// mayLook reports whether mincore(2) tells the truth about a file: it says that all pages are
// resident to a process that neither owns the file nor may write to it.
func mayLook(st *unix.Stat_t) bool {
	uid := unix.Geteuid()
	return uid == 0 || int(st.Uid) == uid
}
