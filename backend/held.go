package backend

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

// Held is a guest that a process, killed since, or this one had begun to quiesce
// for a promotion of the disk.
type Held struct {
	Disk string
	qmp.Spec

	more     []string      // disks with the same note
	released chan struct{} // closed when the tries have come to an end
	// asked ends when a person has said that the guest is not to be let go; forget ends it.
	asked  context.Context
	forget context.CancelFunc
}

// releaseLimit bounds the tries to let one guest go on, and to reach it.
const releaseLimit = 2 * time.Minute

// heldGuests are the guests that are to be let go.
type heldGuests struct {
	mu  sync.Mutex
	all []*Held
	ctx context.Context // Run's; nil before. Letting go outlives the command that held the guest, not the process
}

func (g *heldGuests) add(h Held) *Held {
	h.released = make(chan struct{})
	h.asked, h.forget = context.WithCancel(context.Background())
	g.mu.Lock()
	defer g.mu.Unlock()
	g.all = append(g.all, &h)
	return &h
}

// of are the guests of the disks that are to be let go still.
func (g *heldGuests) of(disks []string) (found []*Held) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, h := range g.all {
		if slices.Contains(disks, h.Disk) || slices.ContainsFunc(h.more, func(disk string) bool { return slices.Contains(disks, disk) }) {
			found = append(found, h)
		}
	}
	return found
}

// remove forgets a guest: it goes on, or a person must act.
func (g *heldGuests) remove(h *Held) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.all = slices.DeleteFunc(g.all, func(other *Held) bool { return other == h })
}

// releaseHeld lets the guests go on that another process has left, while the
// disks are served: a guest may need its disk to thaw.
func (d *Daemon) releaseHeld(ctx context.Context) {
	d.held.mu.Lock()
	d.held.ctx = ctx
	all := slices.Clone(d.held.all)
	d.held.mu.Unlock()
	for _, h := range all {
		d.letGo(ctx, h, "was being quiesced when cowblk was killed")
	}
}

// keepReleasing goes on trying to let a guest go that this process could not: its
// agent or monitor may only be slow, and may even have carried out late what it
// was told to.
func (d *Daemon) keepReleasing(disks []string, spec qmp.Spec) {
	d.held.mu.Lock()
	ctx := d.held.ctx
	d.held.mu.Unlock()
	if ctx == nil || ctx.Err() != nil {
		return // the next process finds the note
	}
	d.letGo(ctx, d.held.add(Held{Disk: disks[0], Spec: spec, more: disks[1:]}), "did not answer when it was to be let go")
}

// letGo is one goroutine a guest.
func (d *Daemon) letGo(ctx context.Context, h *Held, why string) {
	d.background.Go(func() {
		defer close(h.released)
		defer d.held.remove(h)
		limited, cancel := context.WithTimeout(ctx, releaseLimit)
		defer cancel()
		defer context.AfterFunc(h.asked, cancel)()
		err := h.release(limited, d)
		outcome := "a guest that " + why + " goes on"
		switch {
		case errors.Is(err, qmp.ErrGone):
			outcome, err = "a guest that "+why+" has ended since: there is nothing to let go", nil
		case err != nil && h.asked.Err() != nil:
			outcome, err = "a guest that "+why+" is forgotten, as was asked", nil
		}
		if err == nil {
			err = d.names.Note(append([]string{h.Disk}, h.more...), nil)
		}
		switch {
		case err == nil:
			d.log.Info(outcome, "disk", h.Disk, "quiesce", h.Mode)
		case ctx.Err() != nil:
			d.log.Warn("a guest that "+why+" was not let go before the end of this process; the next one tries again", "disk", h.Disk, "quiesce", h.Mode, "err", err)
		default:
			d.log.Error("a guest that "+why+" may still be frozen or paused; resume --forget gives its record up", "disk", h.Disk, "quiesce", h.Mode, "err", err)
		}
	})
}

// forgetHeld gives up to let go a guest of the disk, and takes back what is noted about it.
func (d *Daemon) forgetHeld(ctx context.Context, disk string) error {
	if d.names == nil {
		return errors.New("this process serves raw files: there are no promotions, and no guest is held")
	}
	held := d.held.of([]string{disk})
	for _, h := range held {
		h.forget()
		select {
		case <-h.released:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if len(held) > 0 {
		return nil // with the note of all its disks
	}
	d.promoting.Lock() // else the note could be that of a promotion under way
	defer d.promoting.Unlock()
	return d.names.Note([]string{disk}, nil)
}

// awaitReleased returns when no guest of the disks is still to be let go. A
// promotion that quiesces one comes after that: else it would be let go, and the
// promotion's own note taken back, in the middle of the cut.
func (d *Daemon) awaitReleased(ctx context.Context, disks []string, limit time.Duration) error {
	if limit <= 0 {
		limit = defaultQuiesceLimit
	}
	timer := time.NewTimer(limit)
	defer timer.Stop()
	for _, h := range d.held.of(disks) {
		select {
		case <-h.released:
		case <-ctx.Done():
			return ctx.Err()
		case <-timer.C:
			return fmt.Errorf("disk %q: its guest was being quiesced before and could not be let go since: see that %s answers, promote with quiesce none, or, if that guest is no more or goes on, give its record up (resume --forget)",
				h.Disk, cmp.Or(h.Agent, h.QMP, h.Libvirt))
		}
	}
	return nil
}

func (h *Held) release(ctx context.Context, d *Daemon) error {
	guest, err := h.Open(d.log, d.monitorFor(h.QMP))
	if err != nil {
		return err
	}
	defer guest.Close()
	return guest.ForceThaw(ctx)
}
