package daemon

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	goqmp "github.com/digitalocean/go-qemu/qmp"

	"cowblk/backend/qmp"
	"cowblk/internal/test"
)

// event is one of QEMU's, so long after an arbitrary moment.
func event(name string, after time.Duration) (e goqmp.Event) {
	at := time.Date(2026, 11, 22, 18, 4, 32, 0, time.UTC).Add(after)
	e.Event = name
	e.Timestamp.Seconds, e.Timestamp.Microseconds = at.Unix(), int64(at.Nanosecond()/1000)
	return e
}

func TestHooksCollapseBursts(t *testing.T) {
	var log test.Log
	d := quietDaemon(t, &log, HookOptions{})
	h := d.hooks
	for _, e := range []goqmp.Event{
		event("GUEST_PANICKED", 0), event("SHUTDOWN", time.Millisecond),
		event("STOP", 2*time.Millisecond), event("RESET", 9999*time.Millisecond),
		event("RESET", 10*time.Second), event("RESET", 10100*time.Millisecond),
		event("SHUTDOWN", -time.Hour), // the clock was set back
	} {
		h.handle(e)
	}
	want := []string{"guest-panicked-20261122T180432Z", "reset-20261122T180442Z",
		"shutdown-20261122T170432Z"}
	if got := d.manifests.Tags("test"); !slices.Equal(got, want) {
		t.Errorf("tags %v, want %v", got, want)
	}
	if dropped := log.Values("events"); !slices.Contains(dropped, "RESET 1, SHUTDOWN 1, STOP 1") ||
		!slices.Contains(dropped, "RESET 1") {
		t.Errorf("dropped, as the log has it: %q", dropped)
	}
}

func TestHooksInOneSecond(t *testing.T) {
	d := quietDaemon(t, &test.Log{}, HookOptions{Interval: time.Nanosecond})
	tag(t, d, "reset-20261122T180432Z", "reset-20261122T180433Z")
	d.hooks.handle(event("RESET", 0))
	if got := d.manifests.Tags("test"); len(got) != 3 || got[2] != "reset-20261122T180434Z" {
		t.Errorf("tags %v", got)
	}
}

func TestHooksKeep(t *testing.T) {
	var log test.Log
	d := quietDaemon(t, &log, HookOptions{Keep: 2, Events: []string{"SOMETHING_NEW"}})
	tag(t, d, "something-new-20261122T180432Z", "nightly-20261122T180432Z", "before-reset",
		"20261122T180432Z")
	d.hooks.handle(event("RESET", 0))
	d.hooks.handle(event("RESET", time.Hour))
	if got := d.manifests.Tags("test"); len(got) != 5 || log.Count(slog.LevelError) != 1 {
		t.Errorf("tags %v\n%s", got, &log)
	}
	test.Must(t, test.Err(d.set(SetArgs{Keep: new(int)})))
	d.hooks.handle(event("RESET", 2*time.Hour))
	if got := d.manifests.Tags("test"); len(got) != 6 {
		t.Errorf("tags %v after the limit was lifted", got)
	}
}

func TestHooksIgnoreOwnPauses(t *testing.T) {
	d := quietDaemon(t, &test.Log{}, HookOptions{Interval: time.Nanosecond})
	at := func(when time.Time) goqmp.Event {
		e := goqmp.Event{Event: "STOP"}
		e.Timestamp.Seconds, e.Timestamp.Microseconds = when.Unix(), int64(when.Nanosecond()/1000)
		return e
	}
	before := time.Now().Add(-time.Second)
	var during []time.Time
	for range 2 * ownPauses {
		end := d.hooks.beginPause()
		during = append(during, time.Now())
		d.hooks.handle(at(during[len(during)-1]))
		end()
	}
	open := d.hooks.beginPause()
	d.hooks.handle(at(time.Now().Add(time.Second)))
	open()
	d.hooks.handle(at(during[len(during)-1])) // it comes late
	if got := d.manifests.Tags("test"); len(got) != 0 {
		t.Errorf("tags for pauses of our own: %v", got)
	}
	d.hooks.handle(at(before))
	d.hooks.handle(at(time.Now().Add(time.Second)))
	if got := d.manifests.Tags("test"); len(got) != 2 {
		t.Errorf("tags for pauses of others: %v", got)
	}
}

func TestHookEvent(t *testing.T) {
	for in, want := range map[string]string{
		"SHUTDOWN": "SHUTDOWN", "shutdown": "SHUTDOWN", "guest-panicked": "GUEST_PANICKED",
		"Some_New_One": "SOME_NEW_ONE",
		"":             "", "A B": "", "RESET2": "", "_X": "", "ÄX": "",
		strings.Repeat("X", maxEvent):   strings.Repeat("X", maxEvent),
		strings.Repeat("X", maxEvent+1): "",
	} {
		got, err := HookEvent(in)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("HookEvent(%q) = %q, %v; want %q", in, got, err, want)
		}
		if err == nil {
			tag := hookTag(got, time.Now())
			if len(tag) > 64 || !isHookTag(tag, []string{got}) ||
				isHookTag(tag, nil) != knownEvent(got) {
				t.Errorf("tag %q of %s", tag, got)
			}
		}
	}
	if !slices.IsSorted(qemuEvents) {
		t.Error("qemuEvents is not sorted")
	}
	events, err := HookEvents([]string{"stop", "RESET", "STOP"})
	if err != nil || !slices.Equal(events, []string{"STOP", "RESET"}) {
		t.Errorf("%v, %v", events, err)
	}
}

func TestSet(t *testing.T) {
	d := quietDaemon(t, &test.Log{}, HookOptions{})
	off, list, none, five, minus, low, bad, zero := false, []string{"reset"}, []string{}, 5, -1,
		"10G", "much", 0.0
	for _, a := range []SetArgs{
		{Disk: "test"}, {Disk: "other", WriteCache: &off}, {PromoteOn: &list},
		{Keep: &minus, WriteCache: &off},
		{SpaceLow: &bad, Keep: &five}, {Interval: &zero, WriteCache: &off},
		{PromoteOn: &[]string{"?"}, Keep: &five},
	} {
		if s, err := d.set(a); err == nil {
			t.Errorf("%+v was accepted: %+v", a, s)
		}
	}
	if s := d.settings(); s.Keep != 0 || !s.Disks[0].WriteCache || s.SpaceLow != "off" ||
		s.Interval != 10 {
		t.Errorf("refused settings are in force: %+v", s)
	}
	d.hooks.address = &qmp.Address{Path: "/q"}
	s, err := d.set(SetArgs{PromoteOn: &list, Keep: &five, WriteCache: &off, Disk: "test",
		SpaceLow: &low})
	if err != nil || !slices.Equal(s.PromoteOn, []string{"RESET"}) || s.Keep != 5 ||
		s.SpaceLow != "10G" || s.Disks[0].WriteCache {
		t.Errorf("%+v, %v", s, err)
	}
	if s, err = d.set(SetArgs{PromoteOn: &none}); err != nil || len(s.PromoteOn) != 0 ||
		s.Keep != 5 {
		t.Errorf("%+v, %v", s, err)
	}
	// The next driver finds the write cache off.
	dev := d.snapshot()[0].dev
	space := make([]byte, 60)
	dev.Reset()
	if test.Must(t, dev.Config(space)); space[32] != 0 {
		t.Error("the write cache is still on for the next driver")
	}
}

// Run's goroutines end with it, also when no monitor ever answers and settings change at the last
// moment.
func TestDaemonLeavesNoGoroutine(t *testing.T) {
	test.NoLeaks(t)
	for range 20 {
		d := newDaemon(Options{
			Log: slog.New(slog.DiscardHandler), Store: newStore(t, nil),
			Hooks: HookOptions{QMP: &qmp.Address{Path: t.TempDir() + "/none"},
				Events: []string{"RESET"}},
		})
		set := make(chan error, 1)
		go func() {
			_, err := d.set(SetArgs{PromoteOn: &[]string{"STOP"}})
			set <- err
		}()
		test.Must(t, d.Run(context.Background())) // without exports it is over at once
		test.Must(t, <-set)
	}
}
