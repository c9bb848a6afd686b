package backend

import (
	"fmt"
	"time"
)

// DefaultPoll is how long an idle worker looks for work at most before it
// sleeps, when nothing else is said: what a guest needs that was itself woken.
const DefaultPoll = 50 * time.Microsecond

// MaxPoll bounds the same. A longer look costs a core and gains nothing: by
// then a wake-up is a small part of the wait.
const MaxPoll = time.Millisecond

// CheckPoll says what is wrong with a limit of looking.
func CheckPoll(d time.Duration) error {
	if d < 0 || d > MaxPoll {
		return fmt.Errorf("poll %v: expected a time from 0, which is off, to %v", d, MaxPoll)
	}
	return nil
}

// maxBackoff is how many idle periods at most are slept through after a look
// that was for nothing: the 50 µs of a look are then 50 ns a request.
const maxBackoff = 1024

// pollWindow decides how long an idle worker looks before it sleeps, from how long its
// last idle periods were, much as KVM's halt_poll_ns does for an idle vCPU. A
// look pays if work comes within it, and else only delays the sleep:
//
//   - it looks about twice as long as it lately took until work came, up to limit;
//   - a period longer than limit ends looking: first for one period, then for
//     two, four, ... as long as looking goes on to be for nothing. Each success
//     halves that again, so that looking goes on if it succeeds in the majority;
//   - a worker that sleeps cannot tell what it would have seen, since its period
//     contains two wake-ups, the driver's and its own. So looking resumes by
//     trying, and only if the periods are short enough for a try to succeed:
//     a disk that is used now and then is never looked at.
//
// A pace is a value without a clock; the worker measures.
type pollWindow struct {
	length  time.Duration // to look in the next idle period; 0: sleep at once
	backoff int           // periods to sleep through after the next useless look
	skip    int           // of them, those still to come
}

// nearFactor times the limit is the longest period of a worker that slept
// after which a look might have succeeded: wake-ups take 7 to 77 µs.
const nearFactor = 4

// next returns the pace after an idle period that took gap and in which the
// worker looked up to p.window; found says that the work came while it did.
// wake is what is known to be added to gap if it slept.
func (p pollWindow) next(gap time.Duration, found bool, limit, wake time.Duration) pollWindow {
	near := gap <= nearFactor*limit+wake
	switch {
	case limit <= 0:
		return pollWindow{}
	case found:
		p.backoff /= 2
		p.length = min(limit, max(2*gap, p.length-p.length/16, limit/4))
	case p.length > 0 && p.length < limit && near:
		p.length = limit // the look was too short to know
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
