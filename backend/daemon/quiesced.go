package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"cowblk/backend/qmp"
)

// QuiescedGuest is a guest that a killed process, or this one, has left quiesced for a promotion of
// the disk.
type QuiescedGuest struct {
	Disk string
	qmp.Spec

	otherDisks []string      // disks with the same record
	thawed     chan struct{} // closed when the attempts have ended
	// forgotten is done when the operator wants no more attempts; cancelTries ends it.
	forgotten   context.Context
	cancelTries context.CancelFunc
}

// thawLimit bounds the time to reach and thaw one guest.
const thawLimit = 2 * time.Minute

// quiescedGuests are the guests that have not been thawed yet.
type quiescedGuests struct {
	mu  sync.Mutex
	all []*QuiescedGuest
	// ctx is Run's; nil before. Thawing outlives the command that quiesced the guest.
	ctx context.Context
}

func (g *quiescedGuests) add(h QuiescedGuest) *QuiescedGuest {
	h.thawed = make(chan struct{})
	h.forgotten, h.cancelTries = context.WithCancel(context.Background())
	g.mu.Lock()
	defer g.mu.Unlock()
	g.all = append(g.all, &h)
	return &h
}

// of returns the quiesced guests of these disks that have not been thawed yet.
func (g *quiescedGuests) of(disks []string) (found []*QuiescedGuest) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, h := range g.all {
		if slices.ContainsFunc(disks, h.has) {
			found = append(found, h)
		}
	}
	return found
}

func (h *QuiescedGuest) has(disk string) bool {
	return disk == h.Disk || slices.Contains(h.otherDisks, disk)
}

// remove removes a guest: it continues, or the operator must act.
func (g *quiescedGuests) remove(h *QuiescedGuest) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.all = slices.DeleteFunc(g.all, func(other *QuiescedGuest) bool { return other == h })
}

// thawLeftovers thaws the guests that an earlier process has left quiesced, while the disks are
// served: a guest may need its disk to thaw.
func (d *Daemon) thawLeftovers(ctx context.Context) {
	d.quiesced.mu.Lock()
	d.quiesced.ctx = ctx
	all := slices.Clone(d.quiesced.all)
	d.quiesced.mu.Unlock()
	for _, h := range all {
		d.thawInBackground(ctx, h, "an earlier process was killed while it quiesced the guest")
	}
}

// retryThaw continues to thaw a guest that this process could not thaw: its agent or monitor may
// only be slow, and may even execute the command late.
func (d *Daemon) retryThaw(disks []string, spec qmp.Spec) {
	d.quiesced.mu.Lock()
	ctx := d.quiesced.ctx
	d.quiesced.mu.Unlock()
	if ctx == nil || ctx.Err() != nil {
		return // the next process finds the record
	}
	h := d.quiesced.add(QuiescedGuest{Disk: disks[0], Spec: spec, otherDisks: disks[1:]})
	d.thawInBackground(ctx, h, "this process could not thaw it")
}

// guestEnded is logged when a record is removed because its guest has ended.
const guestEnded = "the guest has ended: it needs no thaw"

// thawInBackground starts one goroutine for the guest.
func (d *Daemon) thawInBackground(ctx context.Context, h *QuiescedGuest, occasion string) {
	d.background.Go(func() {
		defer close(h.thawed)
		defer d.quiesced.remove(h)
		limited, cancel := context.WithTimeout(ctx, thawLimit)
		defer cancel()
		defer context.AfterFunc(h.forgotten, cancel)()
		err := h.thaw(limited, d)
		gone, forgotten := errors.Is(err, qmp.ErrGone), err != nil && h.forgotten.Err() != nil
		if gone || forgotten {
			err = nil
		}
		if err == nil {
			err = d.manifests.SetQuiesceRecord(append([]string{h.Disk}, h.otherDisks...), nil)
		}
		log := d.log.With("disk", h.Disk, "quiesce", h.Mode, "occasion", occasion)
		switch {
		case err == nil && gone:
			log.Info(guestEnded)
		case err == nil && forgotten:
			log.Info("the record of the guest is removed, as requested")
		case err == nil:
			log.Info("the guest continues")
		case ctx.Err() != nil:
			log.Warn("the guest was not thawed before the end of this process; "+
				"the next process tries again", "err", err)
		default:
			log.Error("the guest may still be frozen or paused; "+
				"cowblk resume --forget removes its record", "err", err)
		}
	})
}

// forgetGuest is cow-forget-guest: it ends the attempts to thaw a guest of the disk and removes its
// record.
func (d *Daemon) forgetGuest(ctx context.Context, a diskArgs) (any, error) {
	disks := []string{a.Disk}
	if _, err := d.named(disks); err != nil {
		return nil, err
	}
	if d.manifests == nil {
		return nil, errors.New(
			"this process serves raw files: there are no promotions, and no guest is quiesced")
	}
	held := d.quiesced.of(disks)
	for _, h := range held {
		h.cancelTries()
		select {
		case <-h.thawed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	if len(held) > 0 {
		return nil, nil // together with the record of all its disks
	}
	d.promoting.Lock() // else the record could be that of a promotion in progress
	defer d.promoting.Unlock()
	return nil, d.manifests.SetQuiesceRecord(disks, nil)
}

// waitThawed returns when no guest of the disks is still to be thawed. A promotion that quiesces a
// guest waits for it: else the guest would be thawed, and the promotion's own record removed, in
// the middle of the swap.
func (d *Daemon) waitThawed(ctx context.Context, disks []string, limit time.Duration) error {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	for _, h := range d.quiesced.of(disks) {
		select {
		case <-h.thawed:
		case <-ctx.Done():
			return ctx.Err()
		case <-timer.C:
			return fmt.Errorf("disk %q: its guest was quiesced earlier and could not be thawed: "+
				"make sure that %s answers, promote with quiesce none, or, if that guest has "+
				"ended or runs, remove its record (cowblk resume --forget)",
				h.Disk, cmp.Or(h.Agent, h.QMP, h.Libvirt))
		}
	}
	return nil
}

func (h *QuiescedGuest) thaw(ctx context.Context, d *Daemon) error {
	guest, err := h.Open(d.log, d.monitorFor(h.QMP))
	if err != nil {
		return err
	}
	defer guest.Close()
	return guest.ForceThaw(ctx)
}
