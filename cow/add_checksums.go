package cow

import (
	"context"
	"errors"
	"fmt"

	"cowblk/cow/index"
	"cowblk/cow/layer"
	"cowblk/cow/pagecache"
)

// AddChecksums computes checksums of the data (see layer.AddChecksums) for sealed layers that have
// none: those sealed since the disk was opened, and those of earlier versions. From then on reads
// of them are verified. All of their data is read, which takes long: throttle is called after each
// piece. It returns when the next piece may follow, or an error that ends the work; nil: no
// throttling.
//
// A layer that fails does not keep the others from getting theirs. layer.ErrInUse: another process
// is computing the checksums of a layer; call again later. AddChecksums may be called at any time
// and again; Close and Detach end it with ErrClosed.
func (d *Disk) AddChecksums(ctx context.Context, throttle func(ctx context.Context) error) error {
	d.mu.Lock()
	if d.closed {
		d.mu.Unlock()
		return ErrClosed
	}
	d.backgroundTasks.Add(1)
	missing := make([]*layer.Layer, len(d.layers)) // nil: has checksums, or is about to be replaced
	for i, l := range d.layers {
		if l.Header().State == layer.Sealed && !l.HasChecksums() && !l.WasHead() {
			missing[i] = l
		}
	}
	d.mu.Unlock()
	defer d.backgroundTasks.Done()

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(d.lifetime, cancel)()
	var errs []error
	for i, l := range missing {
		if l == nil {
			continue
		}
		err := l.AddChecksums(func(int64) error {
			if throttle == nil {
				return ctx.Err()
			}
			return throttle(ctx)
		})
		if err == nil {
			err = d.attachChecksums(index.Owner(i+1), l)
		}
		switch {
		case d.lifetime.Err() != nil:
			return ErrClosed
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// attachChecksums swaps in a view that verifies reads of l, unless another layer object has taken
// its place. It returns when all reads are on that view or on later ones. Pages that were marked
// resident without being compared are no longer.
func (d *Disk) attachChecksums(owner index.Owner, l *layer.Layer) error {
	checksums, err := l.Checksums()
	if err != nil {
		return fmt.Errorf("%s: %w", l.Paths().Map, err)
	}
	seq, mapping := d.swapChecksums(owner, l, checksums)
	if mapping != nil {
		d.synchronize(seq, true)
		mapping.Reset()
	}
	return nil
}

// swapChecksums swaps the view for attachChecksums. It returns the view's seq and the source's
// mapping; nil: the source has no mapping, or nothing was changed.
func (d *Disk) swapChecksums(owner index.Owner, l *layer.Layer,
	checksums *layer.Checksums) (seq uint64, mapping *pagecache.Mapping) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.layers[owner-1] != l {
		return 0, nil
	}
	v := d.view.Load()
	s := v.sources[owner]
	s.checksums = checksums
	n := v.withSource(owner, s)
	d.view.Store(n)
	return n.seq, s.mapping
}
