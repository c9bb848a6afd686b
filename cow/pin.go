package cow

import "sync/atomic"

// pins say, for one channel, which views its requests in flight are on. Only
// the channel's own thread stores, so that the hit path of one queue shares no
// cache line with another; a promotion reads the pins of all channels. (A shared
// counter per view would cost every request two contended atomic operations, for
// the sake of an operation that happens once a day.)
type pins struct {
	_          [64]byte
	reads      pinState
	writes     pinState
	readCached bool // the pin of a read stays for the next one: see SubmitBatch
	_          [40]byte
}

// pinState are the pins of one kind of request.
type pinState struct {
	oldest    atomic.Uint64 // seq of the oldest view in flight, 0 for none
	current   uint64        // seq of the request that Submit is working on, 0 for none
	asyncRefs []asyncRef    // of asynchronous operations, oldest view first
}

// asyncRef counts the asynchronous operations on one view. A channel meets views in
// the order of their seq, so that a new one is always the last.
type asyncRef struct {
	seq uint64
	n   int
}

// set pins view seq for the request that is being worked on.
func (p *pinState) set(seq uint64) {
	p.current = seq
	if len(p.asyncRefs) == 0 {
		p.oldest.Store(seq)
	}
}

// clear takes the pin of the request that was being worked on back.
func (p *pinState) clear() {
	p.current = 0
	if len(p.asyncRefs) == 0 {
		p.oldest.Store(0)
	}
}

// refAsync pins view seq, which is pinned already by the request being worked on,
// for one asynchronous operation.
func (p *pinState) refAsync(seq uint64) {
	if n := len(p.asyncRefs); n > 0 && p.asyncRefs[n-1].seq == seq {
		p.asyncRefs[n-1].n++
		return
	}
	p.asyncRefs = append(p.asyncRefs, asyncRef{seq, 1})
	p.oldest.Store(p.asyncRefs[0].seq)
}

// unrefAsync takes one hold on view seq back.
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

// pinRead puts the channel's read on the current view.
//
// The second load is what makes it safe. Loads and stores of sync/atomic have
// one order: either this second load comes after a swap's store and sees the
// new view, or the pin was stored before the swap and everyone who looks at the
// pins after the swap sees it.
//
// A pin that has been kept and names the view that is in place now was stored before
// that was looked at: it is as good.
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

// pinWrite puts the channel's write on the current view, as pinRead does. While
// a cut over several disks is being made it waits, on an asynchronous channel
// too: that takes microseconds, and goroutines of the crew that start then would
// compete with the cut for processors and the disk's mutex.
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

// cacheReadPin has unpinRead leave the pin for the next pinRead, until letPinGo.
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
