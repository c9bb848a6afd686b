package daemon

import (
	"slices"
	"testing"
	"time"

	goqmp "github.com/digitalocean/go-qemu/qmp"

	"cowblk/internal/test"
)

// QEMU's clock and ours are set, far back and far ahead: what comes after is acted on, bursts are
// still one, and a pause of our own makes one tag too many at worst. (What waits goes by the
// monotonic clock: see integration/lint.)
func TestHooksWhenTheClockIsSet(t *testing.T) {
	const year = 365 * 24 * time.Hour
	d := quietDaemon(t, &test.Log{}, HookOptions{})
	for _, after := range []time.Duration{
		0, time.Second, -year, -year + time.Second, year, year + time.Second, -10 * year,
		-10*year + time.Second, -10*year + 11*time.Second,
	} {
		d.hooks.handle(event("RESET", after))
	}
	want := []string{
		"reset-20261122T180432Z", "reset-20251122T180432Z", "reset-20271122T180432Z",
		"reset-20161124T180432Z", "reset-20161124T180443Z",
	}
	if got := d.manifests.Tags("test"); !slices.Equal(got, want) {
		t.Errorf("tags %v, want %v", got, want)
	}

	stop := func(at time.Time) goqmp.Event {
		e := goqmp.Event{Event: "STOP"}
		e.Timestamp.Seconds, e.Timestamp.Microseconds = at.Unix(), int64(at.Nanosecond()/1000)
		return e
	}
	for _, jump := range []time.Duration{-time.Hour, time.Hour} {
		d := quietDaemon(t, &test.Log{}, HookOptions{Interval: time.Nanosecond})
		end := d.hooks.beginPause()
		// the clock was set between our noting and QEMU's
		d.hooks.handle(stop(time.Now().Add(jump)))
		end()
		during := len(d.manifests.Tags("test"))
		// A later pause of somebody else counts, and one of ours does not, by the new clock or the
		// old.
		d.hooks.handle(stop(time.Now().Add(2 * time.Hour)))
		end = d.hooks.beginPause()
		d.hooks.handle(stop(time.Now()))
		end()
		if got := d.manifests.Tags("test"); during > 1 || len(got) != during+1 {
			t.Errorf("the clock set by %s during a pause of our own: tags %v", jump, got)
		}
	}
}
