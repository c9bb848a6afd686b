package daemon

import (
	"testing"
	"time"
)

// It rests nine times as long as it works, and longer while guests are at work.
func TestThrottle(t *testing.T) {
	var served uint64
	s := newThrottle(func() uint64 { return served })
	now := s.at
	step := func(work time.Duration, requests uint64, want time.Duration) {
		t.Helper()
		s.began = now
		served += requests
		now = now.Add(work)
		got := s.length(now)
		if got != want {
			t.Errorf("after %v and %d requests: %v, want %v", work, requests, got, want)
		}
		now = now.Add(got)
	}
	const us, ms = time.Microsecond, time.Millisecond
	step(20*us, 0, busyThrottle) // nothing is known yet
	step(20*us, 0, 180*us)
	step(2*ms, 100, 18*ms) // too short a time to know
	step(20*us, 0, busyThrottle)
	step(20*us, 9, 180*us)
	step(20*ms, 1e6, 180*ms)
	step(20*us, 1e6, busyThrottle)
	step(5*ms, 1e6, 45*ms)
	step(20*us, 0, 180*us)
	step(time.Minute, 0, maxThrottle)
}
