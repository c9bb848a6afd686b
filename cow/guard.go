package cow

import (
	"sync"

	"cowblk/cow/invariants"
)

// guard orders the first writes of a disk: it is a range lock over blocks, shared by all views. A
// request that makes the head the owner of a block (a write, whole or partial, a discard, a
// write-zeroes) holds the block's range while it looks up the owner, reads the old content, writes,
// sets the bits and raises the index.
//
// Without it two copy-ups of one block would each write the old content over the other's new
// sectors, and a copy-up could write old content over a whole-block write that completed between
// its read and its write.
//
// Overwrites of blocks that the head owns do not take it. The mutex is held for a walk over the
// active claims, at most a few per channel.
type guard struct {
	mu    sync.Mutex
	first *claim // in order of arrival, both held and waiting
	last  *claim
	waits uint64 // claims that had to wait, for Stats
}

// claim is one range of blocks, held or waited for. Each channel has one and reuses it.
type claim struct {
	from, to   uint64 // blocks, both inclusive
	earlier    int    // overlapping claims that came earlier and have not been released
	ready      chan struct{}
	prev, next *claim
}

func newClaim() *claim { return &claim{ready: make(chan struct{}, 1)} }

func (c *claim) overlaps(o *claim) bool { return c.from <= o.to && o.from <= c.to }

// tryLock is lock without waiting: it returns false if there is an overlapping claim.
func (g *guard) tryLock(c *claim, from, to uint64) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.place(c, from, to) > 0 {
		return false
	}
	g.append(c)
	return true
}

// lock returns when c holds the blocks from … to. Overlapping claims are served in order of
// arrival: none starves, and as a claim waits only for older ones there is no cycle. The caller
// holds no other claim.
func (g *guard) lock(c *claim, from, to uint64) {
	g.mu.Lock()
	wait := g.place(c, from, to) > 0
	g.append(c)
	if wait {
		g.waits++
	}
	g.mu.Unlock()
	if wait {
		<-c.ready
	}
}

// place sets the range of c, which is not in the list, and returns how many claims of the list
// overlap it.
func (g *guard) place(c *claim, from, to uint64) int {
	c.from, c.to, c.earlier = from, to, 0
	for o := g.first; o != nil; o = o.next {
		if c.overlaps(o) {
			c.earlier++
		}
	}
	return c.earlier
}

func (g *guard) append(c *claim) {
	c.prev, c.next = g.last, nil
	if g.last == nil {
		g.first = c
	} else {
		g.last.next = c
	}
	g.last = c
}

// unlock releases the claim's blocks and wakes the claims that only this one has blocked.
func (g *guard) unlock(c *claim) {
	g.mu.Lock()
	if invariants.Enabled && g.first != c && c.prev == nil {
		panic("guard: unlock of a claim that is not locked")
	}
	for o := c.next; o != nil; o = o.next {
		if o.overlaps(c) {
			o.earlier--
			if o.earlier == 0 {
				o.ready <- struct{}{} // never blocks: capacity 1, sent once per wait
			}
		}
	}
	if c.prev == nil {
		g.first = c.next
	} else {
		c.prev.next = c.next
	}
	if c.next == nil {
		g.last = c.prev
	} else {
		c.next.prev = c.prev
	}
	c.prev, c.next = nil, nil
	g.mu.Unlock()
}

// waitCount returns the number of claims that have had to wait since the open.
func (g *guard) waitCount() uint64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.waits
}
