package cow

import (
	"errors"
	"fmt"
)

// Detach closes the disk like Close, but at once: nothing is written back or synced,
// however much there is, and the head is not marked clean. Whoever opens the disk
// next in this run of the kernel finds it as it was, and owes its durability: every
// write that no flush has covered is covered by the next one there. A power cut is no
// worse than before.
//
// ErrInFlight, ErrPromoting, ErrFailed (what a failed flush has lost must not be
// taken for written), and an error where a former head could not be sealed or, for
// want of a shared map, the bits could not be flushed: nothing happens. After any
// other error the disk is closed nevertheless, and detached says so.
func (d *Disk) Detach() (detached bool, err error) {
	if err := d.failure(); err != nil {
		return false, fmt.Errorf("detach disk: %w", err)
	}
	if n := d.Stats().Unsealed; n > 0 {
		return false, fmt.Errorf("detach disk: %d former heads are not sealed yet: %w", n, ErrPromoting)
	}
	if b := d.view.Load().bitmap; b != nil && !b.Shared() {
		if err := d.flusher.flushNow(); err != nil {
			return false, fmt.Errorf("detach disk: %w", err)
		}
	}
	closeErr, err := d.beginClose()
	if err != nil {
		return false, err
	}
	errs := []error{closeErr}
	if d.flusher != nil {
		d.flusher.end()
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	errs = append(errs, d.view.Load().close())
	layers := d.layers
	if n := len(layers); n > 0 && !d.readOnly {
		errs = append(errs, layers[n-1].Detach())
		layers = layers[:n-1]
	}
	errs = append(errs, closeFiles(d.base, layers, false, nil))
	d.index.Close()
	return true, errors.Join(errs...)
}
