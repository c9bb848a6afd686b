package backend

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"cowblk/backend/qmp"
)

// Held is a guest that a process, killed since, had begun to quiesce for a
// promotion of the disk.
type Held struct {
	Disk string
	qmp.Spec

	released chan struct{} // closed when the tries have come to an end
}

// releaseLimit bounds the tries to let one guest go on, and to reach it.
const releaseLimit = 2 * time.Minute

// releaseHeld lets such guests go on, one goroutine each, while the disks are
// served: a guest may need its disk to thaw.
func (d *Daemon) releaseHeld(ctx context.Context) {
	for _, h := range d.held {
		d.background.Go(func() {
			defer close(h.released)
			ctx, cancel := context.WithTimeout(ctx, releaseLimit)
			defer cancel()
			err := h.release(ctx, d)
			if err == nil {
				err = d.names.Note([]string{h.Disk}, nil)
			}
			if err != nil {
				d.log.Error("a guest that was being quiesced when cowblk was killed may still be frozen or paused", "disk", h.Disk, "quiesce", h.Mode, "err", err)
				return
			}
			d.log.Info("a guest that was being quiesced when cowblk was killed goes on", "disk", h.Disk, "quiesce", h.Mode)
		})
	}
}

// awaitReleased returns when no guest of the disks is still to be let go. A
// promotion that quiesces one comes after that: else it would be let go, and the
// promotion's own note taken back, in the middle of the cut.
func (d *Daemon) awaitReleased(ctx context.Context, disks []string, limit time.Duration) error {
	if limit <= 0 {
		limit = 10 * time.Second
	}
	timer := time.NewTimer(limit)
	defer timer.Stop()
	for _, h := range d.held {
		if !slices.Contains(disks, h.Disk) {
			continue
		}
		select {
		case <-h.released:
		case <-ctx.Done():
			return ctx.Err()
		case <-timer.C:
			return fmt.Errorf("disk %q: its guest was being quiesced when cowblk was killed and could not be let go since: see that %s answers, or promote with quiesce none",
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
	return guest.Release(ctx)
}
