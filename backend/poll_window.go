package backend

import (
	"fmt"
	"time"
)

// DefaultPoll is the default of DeviceOptions.Poll in cowblk serve: the time after which a guest
// that had to be woken itself has sent its next request.
const DefaultPoll = 50 * time.Microsecond

// MaxPoll is the largest allowed DeviceOptions.Poll. Longer polling costs a core and gains nothing:
// a wake-up is then a small part of the wait.
const MaxPoll = time.Millisecond

// CheckPoll returns an error if d is not allowed as DeviceOptions.Poll.
func CheckPoll(d time.Duration) error {
	if d < 0 || d > MaxPoll {
		return fmt.Errorf("poll %v: expected a time from 0, which is off, to %v", d, MaxPoll)
	}
	return nil
}

// maxBackoff is the largest number of idle periods without polling after a useless one: 50 µs of
// polling are then 50 ns a request.
const maxBackoff = 1024

// pollWindow decides how long an idle worker polls before it sleeps, from the lengths of its last
// idle periods, as KVM's halt_poll_ns does for an idle vCPU. Polling pays if work comes within the
// window; else it delays the sleep:
//
//   - The window is about twice the time that recent work took to come, up to limit.
//   - A period longer than limit ends polling: first for one period, then for two, four, ...
//     while polling stays useless. Each success halves that number, so polling continues if most
//     polls succeed.
//   - A worker that sleeps cannot measure what polling would have found: its period contains two
//     wake-ups, the driver's and its own. So polling resumes by a trial, and only if periods are
//     short enough for a trial to succeed. A disk that is used now and then is never polled.
//
// A pollWindow is a value without a clock; the worker measures.
type pollWindow struct {
	length  time.Duration // to poll in the next idle period; 0: sleep at once
	backoff int           // periods without polling after the next useless poll
	skip    int           // the remaining ones
}

// nearFactor times the limit is the longest idle period with a sleep in which polling might have
// succeeded: wake-ups take 7 to 77 µs.
const nearFactor = 4

// next returns the window after an idle period that took gap and in which the worker polled up to
// p.length. found: the work came during polling. wake is the known share of the worker's wake-up in
// gap.
func (p pollWindow) next(gap time.Duration, found bool, limit, wake time.Duration) pollWindow {
	near := gap <= nearFactor*limit+wake
	switch {
	case limit <= 0:
		return pollWindow{}
	case found:
		p.backoff /= 2
		p.length = min(limit, max(2*gap, p.length-p.length/16, limit/4))
	case p.length > 0 && p.length < limit && near:
		p.length = limit // the poll was too short to decide
	case p.length > 0:
		p.length = 0
		p.backoff = min(max(2*p.backoff, 1), maxBackoff)
		p.skip = p.backoff
	case near:
		if p.skip--; p.skip <= 0 {
			p.length, p.skip = limit, 0
		}
	}
	return p
}
