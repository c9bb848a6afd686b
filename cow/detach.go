package cow

import (
	"errors"
	"fmt"
)

// Detach closes the disk like Close, but at once: nothing is written back or synced, and the head
// is not marked clean. The process that opens the disk next in this run of the kernel finds it as
// it was, and makes it durable: its next flush covers every write that no flush has covered here. A
// power cut in between loses no more than before.
//
// ErrInFlight, ErrPromoting and ErrFailed (data that a failed flush has lost must not count as
// written) leave the disk open, as does an error where the bits had to be flushed for want of a
// shared map. After any other error the disk is closed nevertheless, and detached is true.
func (d *Disk) Detach() (detached bool, err error) {
	if err := d.failure(); err != nil {
		return false, fmt.Errorf("detach disk: %w", err)
	}
	if n := d.Stats().Unsealed; n > 0 {
		return false, fmt.Errorf("detach disk: %d former heads are not sealed yet: %w", n,
			ErrPromoting)
	}
	if b := d.view.Load().bitmap; b != nil && !b.Shared() {
		if err := d.flusher.flushNow(); err != nil {
			return false, fmt.Errorf("detach disk: %w", err)
		}
	}
	closeErr, err := d.beginShutdown()
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
