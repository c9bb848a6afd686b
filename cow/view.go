package cow

import (
	"sync/atomic"

	"cowblk/cow/index"
	"cowblk/cow/layer"
	"cowblk/cow/vfs"
)

// view is one state of a stack: which file each owner's blocks are in and which
// layer takes writes. It never changes; a promotion puts another one in its
// place. Every request finishes on the view it began with, and what a view uses
// is released only when no request is on it any more: see pins.
type view struct {
	// seq numbers the views of a disk, from 1 on, in the order of their swap.
	seq uint64
	// since is the seq of the first view with this head. Writes on a view
	// before it go to older heads.
	since uint64
	// settled is set once no write on a view before since is in flight: then
	// nothing below the head changes any more. Views with the same head share it.
	settled *atomic.Bool
	// gate, unless nil, holds back new writes until it is closed; then another
	// view is in place. See Swap.
	gate <-chan struct{}

	sources []source    // by owner; 0 is the base
	top     index.Owner // the newest owner this view knows
	head    index.Owner // the layer that takes writes, == top; 0 when read-only
	bitmap  *layer.Bitmap
}

// source is where the blocks of one owner are.
type source struct {
	file  vfs.File // nil: nothing, reads as zeros
	start int64    // byte of file at which the disk's byte 0 lies
	limit int64    // bytes of the disk it can hold; beyond that it reads as zeros
}

func layerSource(l *layer.Layer) source {
	return source{file: l.Data(), start: l.DataOffset(), limit: l.Header().Size}
}

// pins say, for one channel, which views its requests in flight are on. Only
// the channel's own thread stores, so that the hit path of one queue shares no
// cache line with another; a promotion reads the pins of all channels. (A shared
// counter per view would cost every request two contended atomic operations, for
// the sake of an operation that happens once a day.)
//
// A pin is the seq of the oldest view in flight, 0 for none.
type pins struct {
	_      [64]byte
	reads  atomic.Uint64
	writes atomic.Uint64
	_      [48]byte
}

// pinRead puts the channel's read on the current view.
//
// The second load is what makes it safe. Loads and stores of sync/atomic have
// one order: either this second load comes after a swap's store and sees the
// new view, or the pin was stored before the swap and everyone who looks at the
// pins after the swap sees it.
func (c *Channel) pinRead() *view {
	for {
		v := c.disk.view.Load()
		c.pins.reads.Store(v.seq)
		if c.disk.view.Load() == v {
			return v
		}
	}
}

// pinWrite puts the channel's write on the current view, as pinRead does, and
// waits while a cut over several disks is being made.
func (c *Channel) pinWrite() *view {
	for {
		v := c.disk.view.Load()
		if v.gate != nil {
			<-v.gate
			continue
		}
		c.pins.writes.Store(v.seq)
		if c.disk.view.Load() == v {
			return v
		}
		c.unpinWrite()
	}
}

func (c *Channel) unpinRead() {
	c.pins.reads.Store(0)
	c.disk.wakeQuiet()
}

func (c *Channel) unpinWrite() {
	c.pins.writes.Store(0)
	c.disk.wakeQuiet()
}

// wakeQuiet wakes those who wait for pins to go. When nobody does, it is one
// load of a word that hardly ever changes. The waiter raises the count before
// it looks at the pins, we clear the pin before we look at the count: one of
// the two sees the other.
func (d *Disk) wakeQuiet() {
	if d.quiet.waiting.Load() == 0 {
		return
	}
	// With the mutex taken the waiter is either before its look at the pins
	// or asleep, never between.
	d.quiet.mu.Lock()
	d.quiet.cond.Broadcast()
	d.quiet.mu.Unlock()
}

// waitQuiet returns when no channel has a write, or any request at all, in
// flight on a view before seq. The caller must have seen view seq in place: no
// new pin can then name an older one for long.
//
// It cannot deadlock: a request waits here only for older views than its own,
// and before it takes a guard; requests on older views wait for yet older ones
// or for guards, whose holders wait for nothing but their I/O.
func (d *Disk) waitQuiet(seq uint64, readsToo bool) {
	d.quiet.waiting.Add(1)
	d.quiet.mu.Lock()
	for d.pinnedBefore(seq, readsToo) {
		d.quiet.cond.Wait()
	}
	d.quiet.mu.Unlock()
	d.quiet.waiting.Add(-1)
}

// pinnedBefore looks at every channel. A channel that is missing from the list
// was added after the load of the list, hence after view seq was in place.
func (d *Disk) pinnedBefore(seq uint64, readsToo bool) bool {
	for _, c := range *d.channels.Load() {
		if w := c.pins.writes.Load(); w != 0 && w < seq {
			return true
		}
		if r := c.pins.reads.Load(); readsToo && r != 0 && r < seq {
			return true
		}
	}
	return false
}

// settle returns when nothing below v's head can change any more: every write
// that began before the promotion that made v's head has ended. A copy-up must
// not read a block to which such a write is still on its way, even as a plain
// overwrite: the write would be acknowledged into the old head after its
// block's old content had become the new head's.
//
// Whole-block first writes need not wait: they read nothing, and a write of an
// older view to the same sectors, still in flight, may legally be the one that
// loses.
func (d *Disk) settle(v *view) {
	if v.settled.Load() {
		return
	}
	d.waitQuiet(v.since, false)
	v.settled.Store(true)
}
