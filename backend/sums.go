package backend

import (
	"context"
	"errors"
	"time"

	"cowblk/cow"
	"cowblk/cow/layer"
)

// How much of a processor, and of a device, computing checksums takes: after each
// piece of 64 KiB it rests so many times as long as the piece took, but not longer
// than that.
const (
	sumsRest    = 9
	maxSumsRest = time.Second
)

// sumsRetry is when to look again at layers that another process is at.
const sumsRetry = time.Minute

// sums has the checksums of the data of sealed layers computed, see
// cow.Disk.AddSums: of all disks one after the other, when the daemon starts and
// whenever a former head has been sealed.
type sums struct {
	daemon *Daemon
	wake   chan struct{} // holds one signal
}

func newSums(d *Daemon) *sums { return &sums{daemon: d, wake: make(chan struct{}, 1)} }

// look makes run look for layers without checksums.
func (s *sums) look() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// run works until ctx is done.
func (s *sums) run(ctx context.Context) {
	failed := map[*Export]string{} // what was said last
	for {
		var later <-chan time.Time
		for _, e := range s.daemon.snapshot() {
			disk := e.dev.disk
			if disk.ReadOnly() || ctx.Err() != nil {
				continue
			}
			err := disk.AddSums(ctx, sparing())
			switch {
			case err == nil:
				delete(failed, e)
			case errors.Is(err, layer.ErrInUse):
				later = time.After(sumsRetry)
			case ctx.Err() != nil || errors.Is(err, cow.ErrClosed) || failed[e] == err.Error():
			default:
				failed[e] = err.Error()
				s.daemon.log.Warn("sealed layers stay without checksums of their data", "disk", e.dev.name, "err", err)
			}
		}
		select {
		case <-s.wake:
		case <-later:
		case <-ctx.Done():
			return
		}
	}
}

// sparing makes a pause that leaves most of the machine to others.
func sparing() func(context.Context) error {
	began := time.Now()
	return func(ctx context.Context) error {
		rest := time.NewTimer(min(sumsRest*time.Since(began), maxSumsRest))
		defer rest.Stop()
		select {
		case <-rest.C:
		case <-ctx.Done():
		}
		began = time.Now()
		return ctx.Err()
	}
}
