package index

import (
	"sync"
	"sync/atomic"
)

const (
	unitWords = 8 // one cache line
	unitBytes = unitWords * 8

	// A slab is one mapping; it has the size of a huge page.
	slabBytes = 2 << 20
	slabWords = slabBytes / 8
	slabUnits = slabBytes / unitBytes

	groupUnits = groupWords / unitWords
)

type slab [slabWords]uint64

// arena allocates memory in units that are zero; units are freed by close only. It is read without
// a lock, through the table of slabs.
type arena struct {
	slabs []atomic.Pointer[slab] // long enough for the worst case

	mu     sync.Mutex
	next   uint64   // next unit to allocate
	mapped [][]byte // to unmap
}

// newArena makes an arena for a directory of n entries. Each may need a page of every form in turn,
// and no page crosses the end of a slab.
func newArena(n uint64) *arena {
	var all, most uint64
	for k := range forms {
		units := unitsOf(forms[k].words) + groupUnits
		all, most = all+units, max(most, units)
	}
	return &arena{slabs: make([]atomic.Pointer[slab], n*all/(slabUnits-most)+2)}
}

// unitsOf returns the number of units of so many words.
func unitsOf(words int) uint64 { return uint64(words+unitWords-1) / unitWords }

// alloc returns the first of adjacent units for n words.
func (a *arena) alloc(n int) uint64 {
	units := unitsOf(n)
	a.mu.Lock()
	defer a.mu.Unlock()
	if left := slabUnits - a.next%slabUnits; left < units {
		a.next += left
	}
	first := a.next
	a.next += units
	if i := first / slabUnits; a.slabs[i].Load() == nil {
		s, mapping := mapSlab(i > 0)
		if mapping != nil {
			a.mapped = append(a.mapped, mapping)
		}
		a.slabs[i].Store(s)
	}
	return first
}

// bytes returns the memory of the units in use and of the table.
func (a *arena) bytes() int64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return int64(a.next)*unitBytes + int64(len(a.slabs))*8
}

func (a *arena) close() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for i := range a.slabs {
		a.slabs[i].Store(nil)
	}
	for _, m := range a.mapped {
		unmap(m)
	}
	a.mapped = nil
}
