package cow

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"cowblk/cow/index"
	"cowblk/cow/layer"
)

// Promotion is one change of a disk's head: the head becomes an immutable layer
// and a new, empty one takes over, under the guest's hands.
//
//	Prepare → Swap → (background) drained → synced → sealed → Done
//	        → Cancel → Done
//
// The new head's files, and whatever names them, are durable before Prepare.
// Swap is the cut: a write is in the former head if it was submitted before,
// in the new one if after. It waits for nothing. All that takes time happens
// behind it while requests go on; flushes cover the former head until it is
// sealed, and a crash in between leaves a stack that Open accepts.
type Promotion struct {
	disk *Disk
	next *layer.Layer // the disk's from Swap on, the caller's before and after Cancel
	head source       // of next
	old  *layer.Layer // former head, set by Swap
	done chan struct{}
	err  error

	over chan struct{} // closed after the last attempt to seal
	late error         // its outcome

	swapping bool // under disk.mu: too late to cancel
}

// Prepare checks that next, an empty head open for writing, belongs on top of
// the disk's head, and reserves the disk's next swap for it. ErrPromoting if
// one is reserved already; ErrReadOnly, ErrFailed, ErrClosed; layer.ErrMismatch
// if next does not fit, or if the head's files are not where the next open would
// look for them. After an error next is still the caller's.
func (d *Disk) Prepare(next *layer.Layer) (*Promotion, error) {
	p, head, err := d.reserve(next)
	if err == nil {
		// While it is reserved the head stays the head.
		if err = head.InPlace(); err != nil {
			p.Cancel()
		}
	}
	if err != nil {
		return nil, fmt.Errorf("promote: %w", err)
	}
	return p, nil
}

// reserve is Prepare without looking at the head's files.
func (d *Disk) reserve(next *layer.Layer) (p *Promotion, head *layer.Layer, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.closed:
		err = ErrClosed
	case d.readOnly:
		err = ErrReadOnly
	case d.prepared != nil:
		err = ErrPromoting
	case len(d.layers) == 0:
		err = fmt.Errorf("%w: a raw disk has no layers", ErrSpec)
	case len(d.layers) >= int(^index.Owner(0))-1:
		err = fmt.Errorf("%w: the stack has %d layers", ErrSpec, len(d.layers))
	default:
		head = d.layers[len(d.layers)-1]
		if err = d.failure(); err == nil {
			err = fits(head.Header(), next)
		}
	}
	if err != nil {
		return nil, nil, err
	}
	p = &Promotion{disk: d, next: next, done: make(chan struct{}), over: make(chan struct{})}
	if p.head, err = d.sources.ofLayer(next); err != nil {
		return nil, nil, err
	}
	d.prepared = p
	return p, head, nil
}

// fits checks a new head against the one it shall lie on.
func fits(below layer.Header, next *layer.Layer) error {
	h := next.Header()
	fault := func(what string, expected, found any) error {
		return &layer.Fault{Path: next.Paths().Map, What: what, Expected: fmt.Sprint(expected), Found: fmt.Sprint(found),
			Advice: "create the new head for this disk", Err: layer.ErrMismatch}
	}
	switch {
	case h.State != layer.Head || !next.Writable():
		return fault("state", "a head open for writing", h.State)
	case h.Parent != below.UUID:
		return fault("parent", below.UUID, h.Parent)
	case h.Size != below.Size:
		return fault("size of the disk in bytes", below.Size, h.Size)
	case h.BlockSize != below.BlockSize:
		return fault("block size in bytes", below.BlockSize, h.BlockSize)
	case h.Base != below.Base:
		return fault("fingerprint of the base", below.Base, h.Base)
	case next.Bitmap().Count() != 0:
		return fault("owned blocks", "none", next.Bitmap().Count())
	}
	return nil
}

// Promote is Prepare and Swap for one disk.
func (d *Disk) Promote(next *layer.Layer) (*Promotion, error) {
	p, err := d.Prepare(next)
	if err != nil {
		return nil, err
	}
	return p, Swap(p)
}

// Cancel gives a prepared promotion up; next stays the caller's. It does
// nothing after Swap.
func (p *Promotion) Cancel() {
	p.disk.mu.Lock()
	defer p.disk.mu.Unlock()
	p.cancelLocked()
}

func (p *Promotion) cancelLocked() {
	if p.disk.prepared == p && !p.swapping {
		p.disk.prepared = nil
		p.err = errors.Join(ErrCancelled, p.head.close())
		p.late = p.err
		close(p.done)
		close(p.over)
	}
}

// Done is closed when the former head is sealed, or the first attempt to seal it has
// failed, or the promotion was cancelled.
func (p *Promotion) Done() <-chan struct{} { return p.done }

// Err is the outcome, valid once Done is closed. An error after Swap means that
// the former head is not sealed yet; the swap itself stands and the data are safe. The
// disk tries again until it is closed, see Sealed, then the next open does.
func (p *Promotion) Err() error { return p.err }

// Sealed waits until the former head is sealed, after however many attempts. An error
// means that the disk has failed or was closed before, or the promotion was cancelled, or
// that ctx is done: its error wraps that of the last attempt, if one has failed.
func (p *Promotion) Sealed(ctx context.Context) error {
	select {
	case <-p.over:
		return p.late
	case <-ctx.Done():
	}
	select {
	case <-p.done:
		return errors.Join(ctx.Err(), p.err)
	default:
		return ctx.Err()
	}
}

// Swap makes the cut for all the given promotions, prepared on different disks,
// at one instant: no write submitted after the completion of one that the cut
// leaves out is in it, on whatever disks the two are. All are swapped or none:
// ErrCancelled when one of them is not prepared any more.
//
// One disk's cut is one store. For several, new writes are held back at the
// gate of each disk until every view is replaced, some microseconds; writes in
// flight and reads go on.
func Swap(promotions ...*Promotion) error {
	for i, p := range promotions {
		if !p.claim() {
			for _, q := range promotions[:i] {
				q.unclaim()
			}
			return fmt.Errorf("promote: %w", ErrCancelled)
		}
	}
	cut(promotions)
	return nil
}

// cut swaps the views of claimed promotions. It cannot fail.
func cut(promotions []*Promotion) {
	open := make(chan struct{})
	if len(promotions) > 1 {
		for _, p := range promotions {
			p.shut(open)
		}
	}
	views := make([]*view, len(promotions))
	for i, p := range promotions {
		views[i] = p.swap()
	}
	close(open)
	for i, p := range promotions {
		go p.finish(views[i])
	}
}

// claim makes it too late to cancel p.
func (p *Promotion) claim() bool {
	p.disk.mu.Lock()
	defer p.disk.mu.Unlock()
	if p.disk.prepared != p || p.swapping {
		return false
	}
	p.swapping = true
	return true
}

func (p *Promotion) unclaim() {
	p.disk.mu.Lock()
	p.swapping = false
	p.disk.mu.Unlock()
}

// shut holds back the disk's new writes until open is closed.
func (p *Promotion) shut(open <-chan struct{}) {
	p.disk.mu.Lock()
	gated := *p.disk.view.Load()
	gated.gate = open
	p.disk.view.Store(&gated)
	p.disk.mu.Unlock()
}

// swap puts the view with the new head in place, gate or not.
func (p *Promotion) swap() *view {
	d := p.disk
	d.mu.Lock()
	defer d.mu.Unlock()
	d.flusher.cover(p.next)
	p.old = d.layers[len(d.layers)-1]
	d.layers = append(d.layers[:len(d.layers):len(d.layers)], p.next)
	d.prepared = nil
	d.sealers.Add(1)
	v := d.view.Load().withHead(p.next, p.head)
	d.view.Store(v)
	return v
}

// withHead is v with another layer on top, to which writes go.
func (v *view) withHead(head *layer.Layer, s source) *view {
	n := &view{
		seq: v.seq + 1, since: v.seq + 1, settled: new(atomic.Bool),
		top: v.top + 1, head: v.top + 1, bitmap: head.Bitmap(),
	}
	n.sources = append(v.sources[:len(v.sources):len(v.sources)], s)
	return n
}

// Attempts to seal a former head again: until then no other disk can be opened that
// lies on it, for its map is locked. What failed may pass: no space, no descriptors.
const (
	sealAgain      = time.Second
	sealAgainLimit = time.Minute
)

// finish runs on the promotion's goroutine, started by Swap; Close waits for it. v is
// the view that Swap has put in place.
func (p *Promotion) finish(v *view) {
	defer p.disk.sealers.Done()
	defer close(p.over)
	log := p.disk.log.With("map", p.old.Paths().Map)
	p.err = p.trySeal(v)
	p.late = p.err
	if p.err != nil {
		log.Error("a former head could not be sealed", "err", p.err)
	}
	close(p.done)
	for wait := sealAgain; p.late != nil && p.disk.failure() == nil; wait = min(2*wait, sealAgainLimit) {
		select {
		case <-p.disk.life.Done():
			return
		case <-time.After(wait):
		}
		if p.late = p.trySeal(v); p.late == nil {
			log.Info("the former head is sealed now")
		}
	}
}

func (p *Promotion) trySeal(v *view) error {
	if err := p.seal(v); err != nil {
		return fmt.Errorf("seal %s: %w", p.old.Paths().Map, err)
	}
	return nil
}

// seal waits for the last write to the former head, makes it durable, seals it,
// and puts its read-only files in the place of the writable ones. After an error it can
// be repeated, unless the disk has failed.
func (p *Promotion) seal(v *view) error {
	d := p.disk
	if !p.old.WasHead() {
		d.settle(v)
		// The bulk is written back here, where no flush of the guest waits behind it
		// in the flusher's queue; what the flusher then syncs is next to nothing.
		if err := p.old.SyncData(); err != nil {
			return d.fail(err)
		}
		if err := d.flusher.sealLayer(p.old); err != nil {
			return err
		}
	}
	sealed, err := layer.Open(d.sources.fs, p.old.Paths(), layer.OpenParams{Expect: layer.Expect{State: layer.Sealed, UUID: p.old.Header().UUID}})
	if err != nil {
		return err
	}
	seq, former, err := d.replace(v.head-1, sealed)
	if err != nil {
		return errors.Join(err, sealed.Close())
	}
	// Requests may still be on views that name the writable file.
	d.waitQuiet(seq, true)
	if err := errors.Join(former.close(), p.old.Close()); err != nil {
		d.log.Warn("the files of a former head could not be closed", "map", p.old.Paths().Map, "err", err)
	}
	return nil
}

// replace swaps in a view that finds an owner's blocks in another layer object
// of the same content. It returns the new view's seq and the source that views
// before it used.
func (d *Disk) replace(owner index.Owner, l *layer.Layer) (seq uint64, former source, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	s, err := d.sources.ofLayer(l)
	if err != nil {
		return 0, source{}, err
	}
	v := d.view.Load()
	n := v.withSource(owner, s)
	layers := append([]*layer.Layer(nil), d.layers...)
	layers[owner-1] = l
	d.layers = layers
	d.view.Store(n)
	return n.seq, v.sources[owner], nil
}
