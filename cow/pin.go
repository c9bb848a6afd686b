package cow

import "sync/atomic"

// pins are the marks of one channel on the views that its requests in flight use. Only the
// channel's own thread stores them, so that hits of one queue share no cache line with another; a
// promotion reads the pins of all channels. (A shared counter per view would cost every request two
// contended atomic operations, for an operation that happens once a day.)
type pins struct {
	_          [64]byte
	reads      pinState
	writes     pinState
	readCached bool // the read pin stays for the next read: see SubmitBatch
	_          [40]byte
}

// pinState is the pins of one kind of request, reads or writes.
type pinState struct {
	oldest    atomic.Uint64 // seq of the oldest view in use, 0: none
	current   uint64        // seq of the request that Submit is serving, 0: none
	asyncRefs []asyncRef    // of operations in flight, oldest view first
}

// asyncRef counts the asynchronous operations on one view. A channel meets views in the order of
// their seq, so that a new view is always the last.
type asyncRef struct {
	seq uint64
	n   int
}

// set pins view seq for the request that Submit is serving.
func (p *pinState) set(seq uint64) {
	p.current = seq
	if len(p.asyncRefs) == 0 {
		p.oldest.Store(seq)
	}
}

// clear removes the pin of the request that Submit is serving.
func (p *pinState) clear() {
	p.current = 0
	if len(p.asyncRefs) == 0 {
		p.oldest.Store(0)
	}
}

// refAsync adds a reference to view seq, which the current request has pinned, for one asynchronous
// operation.
func (p *pinState) refAsync(seq uint64) {
	if n := len(p.asyncRefs); n > 0 && p.asyncRefs[n-1].seq == seq {
		p.asyncRefs[n-1].n++
		return
	}
	p.asyncRefs = append(p.asyncRefs, asyncRef{seq, 1})
	p.oldest.Store(p.asyncRefs[0].seq)
}

// unrefAsync drops one reference to view seq.
func (p *pinState) unrefAsync(seq uint64) {
	gone := 0
	for i := range p.asyncRefs {
		if p.asyncRefs[i].seq == seq {
			p.asyncRefs[i].n--
		}
		if gone == i && p.asyncRefs[i].n == 0 {
			gone++
		}
	}
	if gone > 0 {
		p.asyncRefs = p.asyncRefs[:copy(p.asyncRefs, p.asyncRefs[gone:])]
	}
	oldest := p.current
	if len(p.asyncRefs) > 0 {
		oldest = p.asyncRefs[0].seq
	}
	p.oldest.Store(oldest)
}

// olderThan reports whether a request is in flight on a view before seq.
func (p *pinState) olderThan(seq uint64) bool {
	oldest := p.oldest.Load()
	return oldest != 0 && oldest < seq
}

// pinRead pins the current view for the channel's read.
//
// The second load makes this safe. Loads and stores of sync/atomic have one order: either the
// second load comes after the store of a swap and sees the new view, or the pin was stored before
// the swap, and a reader of the pins after the swap sees it.
//
// A cached pin that names the current view was stored before the view was loaded here, which is as
// good.
func (c *Channel) pinRead() *view {
	for {
		v := c.disk.view.Load()
		if c.pins.reads.current == v.seq {
			return v
		}
		c.pins.reads.set(v.seq)
		if c.disk.view.Load() == v {
			return v
		}
	}
}

// pinWrite pins the current view for the channel's write, as pinRead does. While several disks are
// being swapped it waits, on an asynchronous channel too: that takes microseconds, and workers of
// the thread pool that start then would compete with the swap for processors and the disk's mutex.
func (c *Channel) pinWrite() *view {
	for {
		v := c.disk.view.Load()
		if v.gate != nil {
			<-v.gate
			continue
		}
		c.pins.writes.set(v.seq)
		if c.disk.view.Load() == v {
			return v
		}
		c.unpinWrite()
	}
}

func (c *Channel) unpinRead() {
	if c.pins.readCached {
		return
	}
	c.pins.reads.clear()
	c.disk.wakeSynchronize()
}

// cacheReadPin makes unpinRead leave the pin for the next pinRead, until releaseReadPin.
func (c *Channel) cacheReadPin() { c.pins.readCached = true }

func (c *Channel) releaseReadPin() {
	c.pins.readCached = false
	if c.pins.reads.current != 0 {
		c.unpinRead()
	}
}

func (c *Channel) unpinWrite() {
	c.pins.writes.clear()
	c.disk.wakeSynchronize()
}
