package backend

import (
	"runtime"
	"testing"
	"time"

	"cowblk/internal/test"
	"cowblk/vhost/frontend"
)

// A queue that looks for work finds what a driver sends without being kicked, completions of the
// flusher, and scheduled functions; and counts it.
func TestQueueLooksBeforeItSleeps(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(4))
	for name, o := range map[string]frontend.Options{
		"qemu polling": {Poll: true},
		"qemu":         {},
		"spdk":         {Style: frontend.SPDK, Poll: true},
		"no kick":      {NoKick: true},
	} {
		t.Run(name, func(t *testing.T) {
			s := serve(t, DeviceOptions{Poll: MaxPoll})
			f := s.dial(o)
			defer f.Close()
			d := f.Driver(0)
			p := make([]byte, 4096)
			looked := func() bool { // the time is counted after the hit
				n := s.dev.Stats()
				return n.PollHits > 0 && n.PollTime > 0
			}
			for end := time.Now().Add(30 * time.Second); !looked(); {
				for range 100 {
					_, err := d.ReadAt(p, 0)
					test.Must(t, err)
				}
				if f.Features()&frontend.FeatureFlush != 0 {
					test.Must(t, d.Flush())
				}
				if time.Now().After(end) {
					t.Fatalf("nothing was found by looking: %+v", s.dev.Stats())
				}
			}
			s.dev.SetPoll(0)
			_, err := d.ReadAt(p, 0) // the look that is under way may be counted yet
			test.Must(t, err)
			_, err = d.ReadAt(p, 0)
			test.Must(t, err)
			before := s.dev.Stats()
			for range 100 {
				_, err := d.ReadAt(p, 0)
				test.Must(t, err)
			}
			if after := s.dev.Stats(); after.PollHits != before.PollHits ||
				after.PollMisses != before.PollMisses {
				t.Errorf("polling is off: %+v, then %+v", before, after)
			}
		})
	}
}

// A queue that waits for a sync and nothing else sleeps at once, and does not take it for an idle
// period.
func TestQueueSleepsDuringSync(t *testing.T) {
	dev := &Device{}
	dev.poll.Store(int64(MaxPoll))
	before := pollWindow{length: MaxPoll, backoff: 4}
	w := &worker{dev: dev, inflight: 2, syncing: 2, poll: busyPoll{window: before,
		start: time.Now()}}
	if w.busyPoll() || !w.poll.slept {
		t.Error("it looks for work")
	}
	w.endSleep()
	if w.poll.slept || w.poll.window != before {
		t.Errorf("after the sync: %+v, expected %+v", w.poll.window, before)
	}
}

// Stop, memory changes and resets reach a queue that looks as they reach one that sleeps.
func TestScheduledFunctionReachesAPollingQueue(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(4))
	s := serve(t, DeviceOptions{Poll: MaxPoll})
	f := s.dial(frontend.Options{Poll: true, Queues: 2})
	defer f.Close()
	p := make([]byte, 4096)
	for i := range 20 {
		for range 50 {
			_, err := f.Driver(i%2).ReadAt(p, 0)
			test.Must(t, err)
		}
		if i%4 == 3 {
			test.Must(t, f.Reset())
			continue
		}
		test.Must(t, f.Stop())
		test.Must(t, f.Cont())
	}
}

func TestPollLimitIsChecked(t *testing.T) {
	s := serve(t, DeviceOptions{})
	for _, d := range []time.Duration{-1, MaxPoll + 1} {
		if _, err := NewDevice(s.disk, DeviceOptions{Poll: d}); err == nil {
			t.Errorf("poll %v was accepted", d)
		}
	}
}

// GOMAXPROCS goes up with the queues, to a bound, and back when the last is gone.
func TestProcessors(t *testing.T) {
	before := runtime.GOMAXPROCS(2)
	defer runtime.GOMAXPROCS(before)
	var p MaxProcs
	want := func(n int) {
		t.Helper()
		if got := runtime.GOMAXPROCS(0); got != n {
			t.Fatalf("%d queues: GOMAXPROCS %d, expected %d", p.queues, got, n)
		}
	}
	for range 2 {
		p.acquire()
		want(3)
		p.acquire()
		want(4)
		p.release()
		want(4) // not lowered while a queue runs
		p.acquire()
		want(4)
		for range 100 {
			p.acquire()
		}
		want(maxProcessors)
		for range 102 {
			p.release()
		}
		want(2)
	}
	var none *MaxProcs
	none.acquire()
	none.release()
	want(2)
}

func TestCacheNames(t *testing.T) {
	for _, name := range []string{"writeback", "writethrough", "none", "directsync"} {
		var c Cache
		test.Must(t, c.UnmarshalText([]byte(name)))
		test.Equal(t, c.String(), name, "became")
	}
	if (Cache{}).String() != "writeback" {
		t.Error("the zero value is not writeback")
	}
	for _, name := range []string{"", "unsafe", "None", "off"} {
		if err := new(Cache).UnmarshalText([]byte(name)); err == nil {
			t.Errorf("%q was accepted", name)
		}
	}
}
