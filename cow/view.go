package cow

import (
	"errors"
	"sync/atomic"

	"cowblk/cow/index"
	"cowblk/cow/layer"
)

// view is one state of a stack: which file each owner's blocks are in and which
// layer takes writes. It never changes; a promotion puts another one in its
// place. Every request finishes on the view it began with, and what a view uses
// is released only when no request is on it any more: see pins.
type view struct {
	// seq numbers the views of a disk, from 1 on, in the order of their swap.
	seq uint64
	// headSince is the seq of the first view with this head. Writes on a view
	// before it go to older heads.
	headSince uint64
	// oldWritersGone is set once no write on a view before since is in flight: then
	// nothing below the head changes any more. Views with the same head share it.
	oldWritersGone *atomic.Bool
	// gate, unless nil, holds back new writes until it is closed; then another
	// view is in place. See Swap.
	gate <-chan struct{}

	sources []source    // by owner; 0 is the base
	top     index.Owner // the newest owner this view knows
	head    index.Owner // the layer that takes writes, == top; 0 when read-only
	bitmap  *layer.Bitmap
}

// close releases what the sources have opened for themselves.
func (v *view) close() error {
	var errs []error
	for i := range v.sources {
		errs = append(errs, v.sources[i].close())
	}
	return errors.Join(errs...)
}

// withSource is v, one later, with another source of the same content for an owner.
func (v *view) withSource(owner index.Owner, s source) *view {
	n := *v
	n.seq++
	n.sources = append([]source(nil), v.sources...)
	n.sources[owner] = s
	return &n
}

// wakeSynchronize wakes those who wait for pins to go. When nobody does, it is one
// load of a word that hardly ever changes. The waiter raises the count before
// it looks at the pins, we clear the pin before we look at the count: one of
// the two sees the other.
func (d *Disk) wakeSynchronize() {
	if d.synchronizing.waiting.Load() == 0 {
		return
	}
	// With the mutex taken the waiter is either before its look at the pins
	// or asleep, never between.
	d.synchronizing.mu.Lock()
	d.synchronizing.cond.Broadcast()
	d.synchronizing.mu.Unlock()
}

// synchronize returns when no channel has a write, or any request at all, in
// flight on a view before seq. The caller must have seen view seq in place: no
// new pin can then name an older one for long.
//
// It cannot deadlock: a request waits here only for older views than its own,
// and before it takes a guard; requests on older views wait for yet older ones
// or for guards, whose holders wait for nothing but their I/O.
func (d *Disk) synchronize(seq uint64, readsToo bool) {
	d.synchronizing.waiting.Add(1)
	d.synchronizing.mu.Lock()
	for d.pinnedBefore(seq, readsToo) {
		d.synchronizing.cond.Wait()
	}
	d.synchronizing.mu.Unlock()
	d.synchronizing.waiting.Add(-1)
}

// pinnedBefore looks at every channel. A channel that is missing from the list
// was added after the load of the list, hence after view seq was in place.
func (d *Disk) pinnedBefore(seq uint64, readsToo bool) bool {
	for _, c := range *d.channels.Load() {
		if c.pins.writes.olderThan(seq) || readsToo && c.pins.reads.olderThan(seq) {
			return true
		}
	}
	return false
}

// waitOldWriters returns when nothing below v's head can change any more: every write
// that began before the promotion that made v's head has ended. A copy-up must
// not read a block to which such a write is still on its way, even as a plain
// overwrite: the write would be acknowledged into the old head after its
// block's old content had become the new head's.
//
// Whole-block first writes need not wait: they read nothing, and a write of an
// older view to the same sectors, still in flight, may legally be the one that
// loses.
func (d *Disk) waitOldWriters(v *view) {
	if v.oldWritersGone.Load() {
		return
	}
	d.synchronize(v.headSince, false)
	v.oldWritersGone.Store(true)
}
