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

// While guests keep this process busy it rests longer, at least so long: where they
// and their queues fill all processors, whatever else runs makes requests wait for
// their turn. With 140,000 requests a second on two processors the longest of a
// second took 9 to 14 ms with the short rests, 4 to 5 ms with these or without any
// checksums.
const (
	busyRest  = 10 * time.Millisecond
	busyRate  = 1000      // requests a second
	busyBytes = 128 << 10 // of them that count as one more request
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
			disk := e.dev.served()
			if disk.ReadOnly() || ctx.Err() != nil {
				continue
			}
			err := disk.AddChecksums(ctx, newSparing(s.daemon.served).pause)
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

// served counts what guests have asked for, in requests.
func (d *Daemon) served() (n uint64) {
	for _, e := range d.snapshot() {
		s := e.dev.Stats()
		n += s.Reads + s.Writes + s.Flushes + s.Discards + (s.ReadBytes+s.WriteBytes)/busyBytes
	}
	return n
}

// sparing makes pauses that leave most of the machine to others.
type sparing struct {
	served func() uint64
	began  time.Time // the piece under way

	busy    bool
	counted uint64 // of served, at
	at      time.Time
}

func newSparing(served func() uint64) *sparing {
	now := time.Now()
	return &sparing{served: served, began: now, busy: true, counted: served(), at: now}
}

// pause rests after a piece.
func (s *sparing) pause(ctx context.Context) error {
	rest := time.NewTimer(s.rest(time.Now()))
	defer rest.Stop()
	select {
	case <-rest.C:
	case <-ctx.Done():
	}
	s.began = time.Now()
	return ctx.Err()
}

// rest is how long to rest after a piece that ends now.
func (s *sparing) rest(now time.Time) time.Duration {
	rest := min(sumsRest*now.Sub(s.began), maxSumsRest)
	if since := now.Sub(s.at); since >= busyRest {
		n := s.served()
		s.busy = float64(n-s.counted) > busyRate*since.Seconds()
		s.counted, s.at = n, now
	}
	if s.busy {
		rest = max(rest, busyRest)
	}
	return rest
}
