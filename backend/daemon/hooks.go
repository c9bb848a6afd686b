package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	goqmp "github.com/digitalocean/go-qemu/qmp"

	"cowblk/backend/qmp"
)

// Defaults and limits of hooks.
const (
	DefaultHookInterval = 10 * time.Second
	hookLimit           = 30 * time.Second // for one promotion
	hookRetry           = time.Second      // a QEMU that starts is met this soon
	ownPauses           = 16               // remembered
)

// HookOptions make QEMU's events promote every disk of the process, which are
// those of one guest, together.
type HookOptions struct {
	QMP      *qmp.Address  // QEMU's monitor; nil: no connection and no hooks
	Events   []string      // see HookEvent; empty: none, until cow-set names some
	Keep     int           // at this many tags made by hooks a disk gets no more; 0: any number
	Interval time.Duration // from the event of one promotion on, others do nothing; 0: 10 s
}

// hooks listen to QEMU's events. Nothing here is waited for by a guest's request.
type hooks struct {
	daemon  *Daemon
	log     *slog.Logger
	address *qmp.Address
	monitor *qmp.Monitor           // set by start; nil: none
	changed chan *qmp.Subscription // what run is to listen to from now on; holds one

	mu     sync.Mutex
	opts   HookOptions
	pauses []pauseSpan // made by this process: their STOP and RESUME are no news

	// Of run's goroutine.
	last    time.Time      // of the event that promoted last
	dropped map[string]int // events since then that came too soon
}

// pauseSpan is a span of time; a zero end: it lasts.
type pauseSpan struct{ from, to time.Time }

func newHooks(d *Daemon, o HookOptions) *hooks {
	if o.Interval == 0 {
		o.Interval = DefaultHookInterval
	}
	return &hooks{
		daemon: d, log: d.log, address: o.QMP, opts: o,
		changed: make(chan *qmp.Subscription, 1), dropped: map[string]int{},
	}
}

// start connects in the background; stop must follow.
func (h *hooks) start() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.address != nil {
		h.monitor = qmp.NewMonitor(qmp.MonitorOptions{Log: h.log, Address: *h.address, Retry: hookRetry})
	}
	h.subscribe()
}

func (h *hooks) stop() {
	if h.monitor != nil {
		h.monitor.Close()
	}
}

// settings are those in force.
func (h *hooks) settings() HookOptions {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.opts
}

// change puts new settings in force: events that happen after it has returned are
// handled by them.
func (h *hooks) change(f func(*HookOptions)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	before := h.opts.Events
	f(&h.opts)
	if !slices.Equal(before, h.opts.Events) {
		h.subscribe()
	}
}

// subscribe hands run a subscription to the events of the settings. With mu held.
func (h *hooks) subscribe() {
	for _, e := range h.opts.Events {
		if !knownEvent(e) {
			h.log.Warn("QEMU 7.2 to 10 has no such event: nothing will come of it unless this QEMU does", "event", e)
		}
	}
	if h.monitor == nil {
		return
	}
	select {
	case unused := <-h.changed:
		closeSubscription(unused)
	default:
	}
	if len(h.opts.Events) == 0 {
		h.changed <- nil
		return
	}
	h.changed <- h.monitor.Subscribe(h.opts.Events...)
}

func closeSubscription(s *qmp.Subscription) {
	if s != nil {
		s.Close()
	}
}

// run handles events until ctx is done, and then those that have come before.
func (h *hooks) run(ctx context.Context) {
	var sub *qmp.Subscription // nil: no events
	defer func() {
		h.handleQueued(sub)
		h.logDropped()
		closeSubscription(sub)
	}()
	for {
		var events <-chan goqmp.Event
		if sub != nil {
			events = sub.C
		}
		var quiet <-chan time.Time
		if len(h.dropped) > 0 {
			quiet = time.After(h.settings().Interval)
		}
		select {
		case e := <-events:
			h.handle(e)
		case <-quiet:
			h.logDropped()
		case s := <-h.changed:
			h.handleQueued(sub)
			closeSubscription(sub)
			sub = s
		case <-ctx.Done():
			return
		}
	}
}

// handleQueued handles what has come already.
func (h *hooks) handleQueued(sub *qmp.Subscription) {
	if sub == nil {
		return
	}
	for {
		select {
		case e := <-sub.C:
			h.handle(e)
		default:
			return
		}
	}
}

// handle promotes for an event, unless it came too soon after another or from a
// pause of our own making.
func (h *hooks) handle(e goqmp.Event) {
	at := time.Unix(e.Timestamp.Seconds, e.Timestamp.Microseconds*1000)
	if (e.Event == "STOP" || e.Event == "RESUME") && h.paused(at) {
		return
	}
	o := h.settings()
	// By QEMU's clock: an event that had to wait for a promotion is not younger
	// for that.
	if since := at.Sub(h.last); since >= 0 && since < o.Interval {
		h.dropped[e.Event]++
		return
	}
	h.logDropped()
	h.last = at
	disks, tag, err := h.promote(e.Event, at, &o)
	switch {
	case err == nil:
	case errors.Is(err, errPromoted):
		h.log.Error("promotion for an event of QEMU", "event", e.Event, "tag", tag, "err", err)
	default:
		h.log.Error("an event of QEMU made no tag", "event", e.Event, "tag", tag, "disks", strings.Join(disks, ", "), "err", err)
		h.daemon.emit("COW_PROMOTE_REFUSED", promoteRefused{disks, tag, e.Event, err.Error()})
	}
}

// promoteRefused is the data of COW_PROMOTE_REFUSED: a hook's promotion that
// was not made.
type promoteRefused struct {
	Disks   []string `json:"disks"`
	Tag     string   `json:"tag"`
	Trigger string   `json:"trigger"` // QEMU's event
	Reason  string   `json:"reason"`
}

func (h *hooks) promote(event string, at time.Time, o *HookOptions) (disks []string, tag string, err error) {
	var tags []string
	for _, e := range h.daemon.snapshot() {
		if !e.dev.ReadOnly() && h.daemon.names != nil {
			disks = append(disks, e.dev.Name())
			tags = append(tags, h.daemon.names.Tags(e.dev.Name())...)
		}
	}
	// Of two in one second, the later gets the next.
	for tag = hookTag(event, at); slices.Contains(tags, tag); tag = hookTag(event, at) {
		at = at.Add(time.Second)
	}
	if len(disks) == 0 {
		return disks, tag, errors.New("no disk of this process can be written to")
	}
	if err := h.checkKeep(disks, o); err != nil {
		return disks, tag, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), hookLimit)
	defer cancel()
	_, err = h.daemon.promote(ctx, PromoteArgs{Disks: disks, Tag: tag}, event)
	return disks, tag, err
}

// checkKeep refuses when a disk has as many tags made by hooks as are to be kept.
func (h *hooks) checkKeep(disks []string, o *HookOptions) error {
	if o.Keep == 0 {
		return nil
	}
	for _, disk := range disks {
		n := 0
		for _, tag := range h.daemon.names.Tags(disk) {
			if isHookTag(tag, o.Events) {
				n++
			}
		}
		if n >= o.Keep {
			return fmt.Errorf("disk %q has %d tags made by hooks, at most %d are to be kept, and none is deleted without being asked for: "+
				"raise the limit (cow-set \"keep\", serve --keep), or clone the disk from a tag and go on there", disk, n, o.Keep)
		}
	}
	return nil
}

// logDropped tells what came too soon after the last promotion.
func (h *hooks) logDropped() {
	if len(h.dropped) == 0 {
		return
	}
	h.log.Warn("events of QEMU came soon after one that was acted on and made no tags", "events", countsText(h.dropped),
		"after", h.last.UTC(), "min_interval", h.settings().Interval)
	clear(h.dropped)
}

// beginPause notes that this process is about to pause the guest; the function it
// returns, that it goes on.
func (h *hooks) beginPause() (end func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.pauses) == ownPauses {
		h.pauses = slices.Delete(h.pauses, 0, 1)
	}
	from := time.Now().Round(0) // without the monotonic clock: QEMU's times have none
	h.pauses = append(h.pauses, pauseSpan{from: from})
	return func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		for i := range h.pauses {
			if h.pauses[i].from.Equal(from) {
				h.pauses[i].to = time.Now().Round(0)
			}
		}
	}
}

// paused reports whether the guest stood still at this time because of us.
func (h *hooks) paused(at time.Time) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.ContainsFunc(h.pauses, func(w pauseSpan) bool {
		// QEMU's times are in whole microseconds.
		return !at.Before(w.from.Truncate(time.Microsecond)) && (w.to.IsZero() || !at.After(w.to))
	})
}

// monitorFor is the connection to the monitor at address that the hooks have, or
// nil: QEMU serves one client a monitor, so nobody else could connect. An empty
// address means that one.
func (d *Daemon) monitorFor(address string) *qmp.Monitor {
	if d.hooks.monitor == nil || address == "" {
		return d.hooks.monitor
	}
	a, err := qmp.ParseAddress(address)
	if err != nil || !a.Same(*d.hooks.address) {
		return nil
	}
	return d.hooks.monitor
}

// countsText is how often each event came: "RESUME 2, STOP 1".
func countsText(counts map[string]int) string {
	var parts []string
	for _, event := range slices.Sorted(maps.Keys(counts)) {
		parts = append(parts, fmt.Sprintf("%s %d", event, counts[event]))
	}
	return strings.Join(parts, ", ")
}
