package backend

import (
	"context"
	"time"

	"cowblk/backend/qmp"
)

// Held is a guest that a process, killed since, had begun to quiesce for a
// promotion of the disk.
type Held struct {
	Disk string
	qmp.Spec
}

// releaseLimit bounds the tries to let one guest go on, and to reach it.
const releaseLimit = 2 * time.Minute

// releaseHeld lets such guests go on, one goroutine each, while the disks are
// served: a guest may need its disk to thaw.
func (d *Daemon) releaseHeld(ctx context.Context) {
	for _, h := range d.held {
		d.background.Go(func() {
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

func (h *Held) release(ctx context.Context, d *Daemon) error {
	guest, err := h.Open(d.log, d.monitorFor(h.QMP))
	if err != nil {
		return err
	}
	defer guest.Close()
	return guest.Release(ctx)
}
