package cow

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"cowblk/cow/finding"
	"cowblk/cow/index"
	"cowblk/cow/layer"
)

// Promotion is one change of a disk's head: the head becomes an immutable layer, and a new, empty
// head takes its place while the guest runs.
//
//	Prepare → Swap → (background) old writers gone → synced → sealed → Done
//	        → Cancel → Done
//
// The new head's files, and the manifest that names them, are durable before Prepare. Swap is the
// point in time: a write is in the former head if it was submitted before, and in the new head if
// it was submitted after. Swap waits for nothing. All slow work happens after it, while requests go
// on. Flushes cover the former head until it is sealed; a crash in between leaves a stack that Open
// accepts.
type Promotion struct {
	disk *Disk
	next *layer.Layer // the disk's from Swap on; the caller's before, and after Cancel
	head source       // of next
	old  *layer.Layer // former head, set by Swap
	done chan struct{}
	err  error

	sealEnded chan struct{} // closed after the last attempt to seal
	sealErr   error         // outcome of the last attempt

	swapping bool // under disk.mu: Swap has begun, too late to cancel
}

// Prepare checks that next, an empty head open for writing, belongs on top of the disk's head, and
// reserves the disk's next swap for it. ErrPromoting: a swap is reserved already. ErrReadOnly,
// ErrFailed, ErrClosed. layer.ErrMismatch: next does not fit, or the head's files are not where the
// next open would look for them. After an error next is still the caller's.
func (d *Disk) Prepare(next *layer.Layer) (*Promotion, error) {
	p, head, err := d.reserve(next)
	if err == nil {
		// While the swap is reserved the head stays the head.
		if err = head.CheckPaths(); err != nil {
			p.Cancel()
		}
	}
	if err != nil {
		return nil, fmt.Errorf("promote: %w", err)
	}
	return p, nil
}

// reserve is Prepare without the check of the head's paths.
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
			err = checkNewHead(head.Header(), next)
		}
	}
	if err != nil {
		return nil, nil, err
	}
	p = &Promotion{disk: d, next: next, done: make(chan struct{}), sealEnded: make(chan struct{})}
	if p.head, err = d.sources.openLayer(next); err != nil {
		return nil, nil, err
	}
	d.prepared = p
	return p, head, nil
}

// checkNewHead checks a new head against the head that it will lie on.
func checkNewHead(below layer.Header, next *layer.Layer) error {
	h := next.Header()
	fault := func(what string, expected, found any) error {
		return finding.New(layer.ErrMismatch, next.Paths().Map, what, expected, found,
			"create the new head for this disk")
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

// Cancel gives up a prepared promotion; next stays the caller's. After Swap it does nothing.
func (p *Promotion) Cancel() {
	p.disk.mu.Lock()
	defer p.disk.mu.Unlock()
	p.cancelLocked()
}

func (p *Promotion) cancelLocked() {
	if p.disk.prepared == p && !p.swapping {
		p.disk.prepared = nil
		p.err = errors.Join(ErrCancelled, p.head.close())
		p.sealErr = p.err
		close(p.done)
		close(p.sealEnded)
	}
}

// Done returns a channel that is closed when the former head is sealed, the first attempt to seal
// it has failed, or the promotion was cancelled.
func (p *Promotion) Done() <-chan struct{} { return p.done }

// Err returns the outcome; it is valid once Done is closed. After an error since Swap the former
// head is not sealed yet, but the swap stands and the data is safe. The disk retries until it is
// closed (see Sealed), then the next open does.
func (p *Promotion) Err() error { return p.err }

// Sealed waits until the former head is sealed, after any number of attempts. An error means that
// the disk has failed or was closed before, that the promotion was cancelled, or that ctx is done:
// then it wraps the error of the last attempt, if one has failed.
func (p *Promotion) Sealed(ctx context.Context) error {
	select {
	case <-p.sealEnded:
		return p.sealErr
	case <-ctx.Done():
	}
	select {
	case <-p.done:
		if p.err == nil {
			return nil // sealed, although sealEnded is not closed yet
		}
		return errors.Join(ctx.Err(), p.err)
	default:
		return ctx.Err()
	}
}

// Swap swaps the heads of all the given promotions, prepared on different disks, at one instant: if
// a write that completed before another was submitted goes to a new head, so does the other, on any
// of the disks. All are swapped or none: ErrCancelled if a promotion is not prepared any more.
//
// The swap of one disk is one store. For several, new writes wait at the gate of each disk until
// every view is replaced, some microseconds; reads and writes in flight go on.
func Swap(promotions ...*Promotion) error {
	for i, p := range promotions {
		if !p.beginSwap() {
			for _, q := range promotions[:i] {
				q.cancelSwap()
			}
			return fmt.Errorf("promote: %w", ErrCancelled)
		}
	}
	swapAll(promotions)
	return nil
}

// swapAll swaps the views of promotions for which beginSwap has succeeded. It cannot fail.
func swapAll(promotions []*Promotion) {
	open := make(chan struct{})
	if len(promotions) > 1 {
		for _, p := range promotions {
			p.closeGate(open)
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

// beginSwap makes it too late to cancel p. It returns false if p is not prepared any more.
func (p *Promotion) beginSwap() bool {
	p.disk.mu.Lock()
	defer p.disk.mu.Unlock()
	if p.disk.prepared != p || p.swapping {
		return false
	}
	p.swapping = true
	return true
}

func (p *Promotion) cancelSwap() {
	p.disk.mu.Lock()
	p.swapping = false
	p.disk.mu.Unlock()
}

// closeGate holds back the disk's new writes until open is closed.
func (p *Promotion) closeGate(open <-chan struct{}) {
	p.disk.mu.Lock()
	gated := *p.disk.view.Load()
	gated.gate = open
	p.disk.view.Store(&gated)
	p.disk.mu.Unlock()
}

// swap stores the view with the new head, which has no gate.
func (p *Promotion) swap() *view {
	d := p.disk
	d.mu.Lock()
	defer d.mu.Unlock()
	d.flusher.addHead(p.next)
	p.old = d.layers[len(d.layers)-1]
	d.layers = append(d.layers[:len(d.layers):len(d.layers)], p.next)
	d.prepared = nil
	d.backgroundTasks.Add(1)
	v := d.view.Load().withHead(p.next, p.head)
	d.view.Store(v)
	return v
}

// withHead returns v with another layer on top, which takes writes.
func (v *view) withHead(head *layer.Layer, s source) *view {
	n := &view{
		seq: v.seq + 1, headSince: v.seq + 1, oldWritersGone: new(atomic.Bool),
		top: v.top + 1, head: v.top + 1, bitmap: head.Bitmap(),
	}
	n.sources = append(v.sources[:len(v.sources):len(v.sources)], s)
	return n
}

// Pauses between attempts to seal a former head. Until it is sealed its map is locked, and no other
// disk on it can be opened. The cause may pass: no space, no descriptors.
const (
	sealRetryMin = time.Second
	sealRetryMax = time.Minute
)

// finish runs on the promotion's goroutine, started by Swap; Close waits for it. v is the view that
// Swap has stored.
func (p *Promotion) finish(v *view) {
	defer p.disk.backgroundTasks.Done()
	defer close(p.sealEnded)
	log := p.disk.log.With("map", p.old.Paths().Map)
	p.err = p.sealWithPath(v)
	p.sealErr = p.err
	if p.err != nil && !errors.Is(p.err, ErrFailed) { // fail has logged that
		log.Error("a former head could not be sealed and is tried again", "err", p.err)
	}
	close(p.done)
	for wait := sealRetryMin; p.sealErr != nil && p.disk.failure() == nil; wait = min(2*wait,
		sealRetryMax) {
		select {
		case <-p.disk.lifetime.Done():
			return
		case <-time.After(wait):
		}
		if p.sealErr = p.sealWithPath(v); p.sealErr == nil {
			log.Info("the former head is sealed")
		}
	}
}

func (p *Promotion) sealWithPath(v *view) error {
	if err := p.seal(v); err != nil {
		return fmt.Errorf("seal %s: %w", p.old.Paths().Map, err)
	}
	return nil
}

// seal waits for the last write to the former head, makes it durable, seals it, and replaces its
// writable files by read-only ones. After an error it can be repeated, unless the disk has failed.
func (p *Promotion) seal(v *view) error {
	d := p.disk
	if !p.old.WasHead() {
		d.waitOldWriters(v)
		// Most of the data is written back here, where no flush of the guest waits behind it in the
		// flusher's queue; the flusher's sync has little left to do.
		if err := p.old.SyncData(); err != nil {
			return d.fail(err)
		}
		if err := d.flusher.sealLayer(p.old); err != nil {
			return err
		}
	}
	sealed, err := layer.Open(d.sources.fs, p.old.Paths(),
		layer.OpenParams{Expect: layer.Expect{State: layer.Sealed, UUID: p.old.Header().UUID}})
	if err != nil {
		return err
	}
	seq, former, err := d.replaceLayer(v.head-1, sealed)
	if err != nil {
		return errors.Join(err, sealed.Close())
	}
	// Requests may still be on views with the writable file.
	d.synchronize(seq, true)
	if err := errors.Join(former.close(), p.old.Close()); err != nil {
		d.log.Warn("the files of a former head could not be closed", "map", p.old.Paths().Map,
			"err", err)
	}
	return nil
}

// replaceLayer swaps in a view that finds an owner's blocks in another layer object of the same
// content. It returns the new view's seq, and the source that earlier views use.
func (d *Disk) replaceLayer(owner index.Owner, l *layer.Layer) (seq uint64, former source,
	err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	s, err := d.sources.openLayer(l)
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
