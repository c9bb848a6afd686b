package cow

import (
	"errors"
	"sync/atomic"

	"cowblk/cow/index"
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
