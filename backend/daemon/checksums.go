package daemon

import (
	"context"
	"errors"
	"time"

	"cowblk/cow"
	"cowblk/cow/layer"
)

// The share of a processor and a device that computing checksums takes: after each piece of 64 KiB
// a pause of throttleRatio times the piece's duration, at most maxThrottle.
const (
	throttleRatio = 9
	maxThrottle   = time.Second
)

// While guests are busy the pause is at least busyThrottle: where guests and queues use all
// processors, any other work delays requests. At 140,000 requests a second on two processors the
// longest request of a second took 9 to 14 ms with the short pauses, and 4 to 5 ms with these or
// without checksums.
const (
	busyThrottle = 10 * time.Millisecond
	busyRate     = 1000      // requests a second
	busyBytes    = 128 << 10 // bytes that count as one more request
)

// checksumRetry is the wait before another look at layers that another process is computing.
const checksumRetry = time.Minute

// checksummer computes the missing checksums of sealed layers (cow.Disk.AddSums): of all disks one
// after the other, when the daemon starts and when a former head was sealed.
type checksummer struct {
	daemon *Daemon
	wake   chan struct{} // capacity one
}

func newChecksummer(d *Daemon) *checksummer {
	return &checksummer{daemon: d, wake: make(chan struct{}, 1)}
}

// notify makes run look for layers without checksums.
func (s *checksummer) notify() { notify(s.wake) }

// run works until ctx is done.
func (s *checksummer) run(ctx context.Context) {
	failed := map[*Export]string{} // last error that was logged
	for {
		var later <-chan time.Time
		for _, e := range s.daemon.snapshot() {
			disk := e.dev.Disk()
			if disk.ReadOnly() || ctx.Err() != nil {
				continue
			}
			err := disk.AddChecksums(ctx, newThrottle(s.daemon.requests).pause)
			switch {
			case err == nil:
				delete(failed, e)
			case errors.Is(err, layer.ErrInUse):
				later = time.After(checksumRetry)
			case ctx.Err() != nil || errors.Is(err, cow.ErrClosed) || failed[e] == err.Error():
			default:
				failed[e] = err.Error()
				s.daemon.log.Warn("sealed layers are left without checksums", "disk", e.dev.Name(),
					"err", err)
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

// requests returns the number of guest requests, with bytes converted to requests.
func (d *Daemon) requests() (n uint64) {
	for _, e := range d.snapshot() {
		s := e.dev.Stats()
		n += s.Reads + s.Writes + s.Flushes + s.Discards + (s.ReadBytes+s.WriteBytes)/busyBytes
	}
	return n
}

// throttle makes pauses that leave most of the machine to others.
type throttle struct {
	requests func() uint64
	began    time.Time // start of the current piece

	busy    bool
	counted uint64 // requests, counted at
	at      time.Time
}

func newThrottle(served func() uint64) *throttle {
	now := time.Now()
	return &throttle{requests: served, began: now, busy: true, counted: served(), at: now}
}

// pause waits after a piece.
func (s *throttle) pause(ctx context.Context) error {
	timer := time.NewTimer(s.length(time.Now()))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
	s.began = time.Now()
	return ctx.Err()
}

// length returns the length of the pause after a piece that ends now.
func (s *throttle) length(now time.Time) time.Duration {
	d := min(throttleRatio*now.Sub(s.began), maxThrottle)
	if since := now.Sub(s.at); since >= busyThrottle {
		n := s.requests()
		s.busy = float64(n-s.counted) > busyRate*since.Seconds()
		s.counted, s.at = n, now
	}
	if s.busy {
		d = max(d, busyThrottle)
	}
	return d
}
