package backend

import (
	"testing"
	"time"

	"cowblk/internal/test"
)

const us = time.Microsecond

// simulate runs idle periods of the given lengths through a pollWindow. A worker that slept sees
// its period longer by wake.
func simulate(p *pollWindow, limit, wake time.Duration, gaps ...time.Duration) (hits, misses int,
	spun time.Duration) {
	for _, gap := range gaps {
		window := min(p.length, limit)
		switch {
		case window > 0 && gap <= window:
			hits++
			spun += gap
			*p = p.next(gap, true, limit, 0)
			continue
		case window > 0:
			misses++
			spun += window
		}
		*p = p.next(gap+wake, false, limit, 0)
	}
	return hits, misses, spun
}

func repeat(n int, pattern ...time.Duration) (gaps []time.Duration) {
	for range n {
		gaps = append(gaps, pattern...)
	}
	return gaps
}

func TestPaceOverPeriods(t *testing.T) {
	for _, tc := range []struct {
		name       string
		limit      time.Duration
		wake       time.Duration
		gaps       []time.Duration
		hits       int // at least
		misses     int // at most
		spun       time.Duration
		lastWindow bool // looks in the next period
	}{
		{"a polling driver", 50 * us, 8 * us, repeat(1000, 2*us), 999, 0, 2 * time.Millisecond,
			true},
		{"a blocking driver, both sides asleep at first", 50 * us, 75 * us, repeat(1000, 14*us),
			999, 0, 14 * time.Millisecond, true},
		{"just within the limit", 50 * us, 75 * us, repeat(1000, 50*us), 999, 0,
			50 * time.Millisecond, true},
		{"think time beyond the limit", 50 * us, 20 * us, repeat(10000, 100*us), 0, 20,
			time.Millisecond, false},
		{"just beyond the limit", 50 * us, 0, repeat(10000, 51*us), 0, 20, time.Millisecond, false},
		{"much longer", 50 * us, 10 * us, repeat(10000, time.Millisecond), 0, 0, 0, false},
		{"off", 0, 10 * us, repeat(1000, us), 0, 0, 0, false},
		{"bursts of 100 with pauses", 50 * us, 10 * us,
			repeat(100, append(repeat(100, 4*us), 10*time.Millisecond)...),
			9700, 100, 44 * time.Millisecond, false},
		{"one short in three", 50 * us, 10 * us, repeat(1000, 5*us, 100*us, 100*us), 0, 100,
			5 * time.Millisecond, false},
		{"two short in three", 50 * us, 10 * us, repeat(1000, 5*us, 5*us, 100*us), 1900, 1000,
			60 * time.Millisecond, true},
		{"a long one in 50", 50 * us, 10 * us, repeat(100, append(repeat(49, 20*us), 300*us)...),
			4700, 100, 110 * time.Millisecond, false},
		{"no more than a millisecond", MaxPoll, 10 * us, repeat(100, 900*us), 99, 0,
			90 * time.Millisecond, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var p pollWindow
			hits, misses, spun := simulate(&p, tc.limit, tc.wake, tc.gaps...)
			if hits < tc.hits || misses > tc.misses || spun > tc.spun {
				t.Errorf("%d hits, %d misses, %v spun: expected at least %d, at most %d and %v",
					hits, misses, spun, tc.hits, tc.misses, tc.spun)
			}
			if tc.lastWindow != (p.length > 0) {
				t.Errorf("ends with %+v", p)
			}
		})
	}
}

// Whatever came before, a worker that finds short periods again looks again soon, and one whose
// disk falls idle spends no more than one look.
func TestPaceChangesItsMind(t *testing.T) {
	var p pollWindow
	simulate(&p, 50*us, 20*us, repeat(100000, 100*us)...)
	if p.backoff != maxBackoff {
		t.Fatalf("%+v after think time", p)
	}
	hits, _, _ := simulate(&p, 50*us, 20*us, repeat(3*maxBackoff, 10*us)...)
	if hits < maxBackoff || p.backoff != 0 {
		t.Errorf("%d hits, %+v", hits, p)
	}
	if _, misses, spun := simulate(&p, 50*us, 20*us, repeat(1000, time.Second)...); misses != 1 ||
		spun > 50*us {
		t.Errorf("idle: %d misses, %v spun", misses, spun)
	}
}

func TestPaceSteps(t *testing.T) {
	const limit = 40 * us
	for _, tc := range []struct {
		name  string
		p     pollWindow
		gap   time.Duration
		found bool
		wake  time.Duration
		want  pollWindow
	}{
		{"first period, short", pollWindow{}, 30 * us, false, 0, pollWindow{length: limit}},
		{"first period, two wake-ups in it", pollWindow{}, 160 * us, false, 0,
			pollWindow{length: limit}},
		{"first period, long", pollWindow{}, 161 * us, false, 0, pollWindow{}},
		{"timed ring, short", pollWindow{}, time.Millisecond, false, 2 * time.Millisecond,
			pollWindow{length: limit}},
		{"found at once", pollWindow{length: limit}, 0, true, 0,
			pollWindow{length: limit - limit/16}},
		{"found at once, window small", pollWindow{length: 10 * us}, 0, true, 0,
			pollWindow{length: 10 * us}},
		{"found late", pollWindow{length: 20 * us}, 15 * us, true, 0, pollWindow{length: 30 * us}},
		{"found at the end", pollWindow{length: limit}, limit, true, 0, pollWindow{length: limit}},
		{"found halves what failures have doubled", pollWindow{length: limit, backoff: 8}, limit,
			true, 0, pollWindow{length: limit, backoff: 4}},
		{"looked too briefly to know", pollWindow{length: 10 * us}, 60 * us, false, 0,
			pollWindow{length: limit}},
		{"looked briefly, long period", pollWindow{length: 10 * us}, time.Second, false, 0,
			pollWindow{backoff: 1, skip: 1}},
		{"looked in full", pollWindow{length: limit, backoff: 2}, 60 * us, false, 0,
			pollWindow{backoff: 4, skip: 4}},
		{"no end", pollWindow{length: limit, backoff: maxBackoff}, 60 * us, false, 0,
			pollWindow{backoff: maxBackoff, skip: maxBackoff}},
		{"waiting for the next try", pollWindow{backoff: 4, skip: 4}, 60 * us, false, 0,
			pollWindow{backoff: 4, skip: 3}},
		{"the next try", pollWindow{backoff: 4, skip: 1}, 60 * us, false, 0,
			pollWindow{length: limit, backoff: 4}},
		{"long periods do not bring it nearer", pollWindow{backoff: 4, skip: 4}, time.Second, false,
			0, pollWindow{backoff: 4, skip: 4}},
		{"limit has been lowered", pollWindow{length: time.Millisecond}, 20 * us, true, 0,
			pollWindow{length: limit}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			test.Equal(t, tc.p.next(tc.gap, tc.found, limit, tc.wake), tc.want)
		})
	}
	if got := (pollWindow{length: limit, backoff: 3, skip: 2}).next(us, false, 0,
		0); got != (pollWindow{}) {
		t.Errorf("off: %+v", got)
	}
}
