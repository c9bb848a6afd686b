package cow

import "sync/atomic"

// pins say, for one channel, which views its requests in flight are on. Only
// the channel's own thread stores, so that the hit path of one queue shares no
// cache line with another; a promotion reads the pins of all channels. (A shared
// counter per view would cost every request two contended atomic operations, for
// the sake of an operation that happens once a day.)
type pins struct {
	_      [64]byte
	reads  pinned
	writes pinned
	kept   bool // the pin of a read stays for the next one: see SubmitBatch
	_      [40]byte
}

// pinned are the pins of one kind of request.
type pinned struct {
	oldest atomic.Uint64 // seq of the oldest view in flight, 0 for none
	now    uint64        // seq of the request that Submit is working on, 0 for none
	held   []hold        // of asynchronous operations, oldest view first
}

// hold counts the asynchronous operations on one view. A channel meets views in
// the order of their seq, so that a new one is always the last.
type hold struct {
	seq uint64
	n   int
}

// set pins view seq for the request that is being worked on.
func (p *pinned) set(seq uint64) {
	p.now = seq
	if len(p.held) == 0 {
		p.oldest.Store(seq)
	}
}

// clear takes the pin of the request that was being worked on back.
func (p *pinned) clear() {
	p.now = 0
	if len(p.held) == 0 {
		p.oldest.Store(0)
	}
}

// hold pins view seq, which is pinned already by the request being worked on,
// for one asynchronous operation.
func (p *pinned) hold(seq uint64) {
	if n := len(p.held); n > 0 && p.held[n-1].seq == seq {
		p.held[n-1].n++
		return
	}
	p.held = append(p.held, hold{seq, 1})
	p.oldest.Store(p.held[0].seq)
}

// drop takes one hold on view seq back.
func (p *pinned) drop(seq uint64) {
	gone := 0
	for i := range p.held {
		if p.held[i].seq == seq {
			p.held[i].n--
		}
		if gone == i && p.held[i].n == 0 {
			gone++
		}
	}
	if gone > 0 {
		p.held = p.held[:copy(p.held, p.held[gone:])]
	}
	oldest := p.now
	if len(p.held) > 0 {
		oldest = p.held[0].seq
	}
	p.oldest.Store(oldest)
}

// before reports whether a request is in flight on a view before seq.
func (p *pinned) before(seq uint64) bool {
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
		if c.pins.reads.now == v.seq {
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
	if c.pins.kept {
		return
	}
	c.pins.reads.clear()
	c.disk.wakeQuiet()
}

// keepPin has unpinRead leave the pin for the next pinRead, until letPinGo.
func (c *Channel) keepPin() { c.pins.kept = true }

func (c *Channel) letPinGo() {
	c.pins.kept = false
	if c.pins.reads.now != 0 {
		c.unpinRead()
	}
}

func (c *Channel) unpinWrite() {
	c.pins.writes.clear()
	c.disk.wakeQuiet()
}
