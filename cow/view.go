package cow

import (
	"errors"
	"slices"
	"sync/atomic"

	"cowblk/cow/index"
	"cowblk/cow/invariants"
	"cowblk/cow/layer"
)

// view is one immutable state of a stack: the file of each owner's blocks, and the layer that takes
// writes. A promotion replaces the current view. Every request finishes on the view it began with,
// and the resources of a view are released only when no request is on it any more: see pins.
type view struct {
	// seq numbers the views of a disk, from 1 on, in the order of their swap.
	seq uint64
	// headSince is the seq of the first view with this head. Writes on earlier views go to older
	// heads.
	headSince uint64
	// oldWritersGone is set once no write on a view before headSince is in flight: then nothing
	// below the head changes any more. Views with the same head share it.
	oldWritersGone *atomic.Bool
	// gate, unless nil, holds back new writes until it is closed, when another view is in place.
	// See Swap.
	gate <-chan struct{}

	sources []source    // by owner; 0 is the base
	top     index.Owner // the newest owner of this view
	head    index.Owner // the layer that takes writes, == top; 0 when read-only
	bitmap  *layer.Bitmap
}

// close closes what the sources have opened themselves.
func (v *view) close() error {
	var errs []error
	for i := range v.sources {
		errs = append(errs, v.sources[i].close())
	}
	return errors.Join(errs...)
}

// withSource returns the view after v, with another source of the same content for an owner.
func (v *view) withSource(owner index.Owner, s source) *view {
	n := *v
	n.seq++
	n.sources = append([]source(nil), v.sources...)
	n.sources[owner] = s
	return &n
}

// wakeSynchronize wakes the goroutines in synchronize. If there are none it is one load of a word
// that hardly ever changes. The waiter increments the count before it reads the pins; the caller
// here clears its pin before it reads the count: one of the two sees the other.
func (d *Disk) wakeSynchronize() {
	if d.synchronizing.waiting.Load() == 0 {
		return
	}
	// With the mutex held, the waiter has either not read the pins yet or sleeps.
	d.synchronizing.mu.Lock()
	d.synchronizing.cond.Broadcast()
	d.synchronizing.mu.Unlock()
}

// synchronize returns when no channel has a write, or with readsToo any request, in flight on a
// view before seq. The caller must have seen view seq in place: then a new pin can name an older
// view only briefly.
//
// It cannot deadlock: a request waits here only for views older than its own, and before it takes a
// guard; requests on older views wait for still older ones or for guards, whose holders wait for
// their I/O alone.
func (d *Disk) synchronize(seq uint64, readsToo bool) {
	d.synchronizing.waiting.Add(1)
	d.synchronizing.mu.Lock()
	for d.pinnedBefore(seq, readsToo) {
		d.synchronizing.cond.Wait()
	}
	d.synchronizing.mu.Unlock()
	d.synchronizing.waiting.Add(-1)
}

// pinnedBefore checks every channel. A channel that is missing from the list was added after the
// load of the list, hence after view seq was in place.
func (d *Disk) pinnedBefore(seq uint64, readsToo bool) bool {
	for _, c := range *d.channels.Load() {
		if c.pins.writes.olderThan(seq) || readsToo && c.pins.reads.olderThan(seq) {
			return true
		}
	}
	return false
}

// waitOldWriters returns when nothing below v's head can change any more: every write that began
// before the promotion that made v's head has ended. A copy-up must not read a block while such a
// write is on its way to it, even an overwrite: the write would be acknowledged into the old head
// after its block's old content had been copied to the new head.
//
// Whole-block first writes need not wait: they read nothing, and a write of an older view to the
// same sectors that is still in flight may legally be the one that loses.
func (d *Disk) waitOldWriters(v *view) {
	if v.oldWritersGone.Load() {
		return
	}
	d.synchronize(v.headSince, false)
	v.oldWritersGone.Store(true)
}

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
	if invariants.Enabled && !slices.ContainsFunc(p.asyncRefs, func(r asyncRef) bool { return r.seq == seq && r.n > 0 }) {
		panic("view: a reference is dropped that nobody has")
	}
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
