package index

import (
	"sync"
	"sync/atomic"
)

const (
	slotWords = pageBlocks / 8 // one byte per block
	slotBytes = slotWords * 8

	// A slab is one mapping; its size is that of a huge page.
	slabSlots = 512
	slabWords = slabSlots * slotWords
	slabBytes = slabWords * 8
)

type slab [slabWords]uint64

// arena hands out slots of 4 KiB that are zero and are never given back before
// close. Slots are read without a lock, through the table of slabs.
type arena struct {
	slabs []atomic.Pointer[slab] // long enough for the worst case

	mu     sync.Mutex
	next   uint64   // slot to hand out
	mapped [][]byte // to unmap
}

// newArena makes an arena for a directory of n entries. An entry takes one
// slot at first and may take two more when it becomes wide; a slab may end in
// one slot that is no place for a wide page.
func newArena(n uint64) *arena {
	return &arena{slabs: make([]atomic.Pointer[slab], 3*n/(slabSlots-1)+2)}
}

// words returns n words of memory from the beginning of a slot on.
func (a *arena) words(slot uint64, n int) []uint64 {
	s := a.slabs[slot/slabSlots].Load()
	first := slot % slabSlots * slotWords
	return s[first : first+uint64(n)]
}

// alloc returns n adjacent slots.
func (a *arena) alloc(n uint64) uint64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	if left := slabSlots - a.next%slabSlots; left < n {
		a.next += left
	}
	first := a.next
	a.next += n
	if i := first / slabSlots; a.slabs[i].Load() == nil {
		s, mapping := mapSlab(i > 0)
		if mapping != nil {
			a.mapped = append(a.mapped, mapping)
		}
		a.slabs[i].Store(s)
	}
	return first
}

// bytes is how much memory the slots in use and the table take.
func (a *arena) bytes() int64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return int64(a.next)*slotBytes + int64(len(a.slabs))*8
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
