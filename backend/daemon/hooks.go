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
	hookRetry           = time.Second      // interval of connection attempts to QEMU
	ownPauses           = 16               // pauses that are remembered
)

// HookOptions makes events of QEMU promote every disk of the process together. The disks belong to
// one guest.
type HookOptions struct {
	QMP      *qmp.Address  // QEMU's monitor; nil: no connection and no hooks
	Events   []string      // see HookEvent; empty: none, until cow-set sets some
	Keep     int           // limit of tags made by hooks on one disk; 0: none
	Interval time.Duration // events in this time after an event that promoted do nothing; 0: 10 s
}

// hooks listens to QEMU's events. No request of a guest waits for it.
type hooks struct {
	daemon  *Daemon
	log     *slog.Logger
	address *qmp.Address
	monitor *qmp.Monitor           // set by start; nil: none
	changed chan *qmp.Subscription // the subscription that run uses next; capacity one

	mu     sync.Mutex
	opts   HookOptions
	pauses []pauseSpan // pauses by this process: their STOP and RESUME are ignored

	// Owned by run's goroutine.
	last    time.Time      // time of the last event that promoted
	dropped map[string]int // events since then that came too early
}

// pauseSpan is a time span; zero to: it has not ended.
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

// start connects in the background. stop must be called later.
func (h *hooks) start() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.address != nil {
		o := qmp.MonitorOptions{Log: h.log, Address: *h.address, Retry: hookRetry}
		h.monitor = qmp.NewMonitor(o)
	}
	h.subscribe()
}

func (h *hooks) stop() {
	if h.monitor != nil {
		h.monitor.Close()
	}
}

// settings returns the current settings.
func (h *hooks) settings() HookOptions {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.opts
}

// set changes the settings. Events after it has returned use them.
func (h *hooks) set(o HookOptions) {
	h.mu.Lock()
	defer h.mu.Unlock()
	before := h.opts.Events
	if h.opts = o; !slices.Equal(before, o.Events) {
		h.subscribe()
	}
}

// subscribe passes run a subscription to the events of the settings. The caller holds mu.
func (h *hooks) subscribe() {
	for _, e := range h.opts.Events {
		if !knownEvent(e) {
			h.log.Warn("QEMU 7.2 to 10 has no such event: it does nothing unless this QEMU has it",
				"event", e)
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

// run handles events until ctx is done, then the events that are queued.
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

// handleQueued handles queued events.
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

// handle promotes at an event, unless the event came too early after another or from a pause by
// this process.
func (h *hooks) handle(e goqmp.Event) {
	at := time.Unix(e.Timestamp.Seconds, e.Timestamp.Microseconds*1000)
	if (e.Event == "STOP" || e.Event == "RESUME") && h.paused(at) {
		return
	}
	o := h.settings()
	// The time is QEMU's: an event that waited for a promotion keeps its age.
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
		h.log.Error("a promotion at an event of QEMU was made with an error", "event", e.Event,
			"tag", tag, "err", err)
	default:
		h.log.Error("an event of QEMU made no tag", "event", e.Event, "tag", tag,
			"disks", strings.Join(disks, ", "), "err", err)
		h.daemon.emit("COW_PROMOTE_REFUSED", promoteRefused{disks, tag, e.Event, err.Error()})
	}
}

// promoteRefused is the data of COW_PROMOTE_REFUSED: a hook's promotion that failed.
type promoteRefused struct {
	Disks   []string `json:"disks"`
	Tag     string   `json:"tag"`
	Trigger string   `json:"trigger"` // QEMU's event
	Reason  string   `json:"reason"`
}

// promote promotes all disks that can be written to, with the tag of an event at this time.
func (h *hooks) promote(
	event string, at time.Time, o *HookOptions,
) (disks []string, tag string, err error) {
	var tags []string
	for _, e := range h.daemon.snapshot() {
		if !e.dev.ReadOnly() && h.daemon.manifests != nil {
			disks = append(disks, e.dev.Name())
			tags = append(tags, h.daemon.manifests.Tags(e.dev.Name())...)
		}
	}
	// A second tag in one second gets the next second.
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

// checkKeep refuses a promotion when a disk has HookOptions.Keep tags made by hooks.
func (h *hooks) checkKeep(disks []string, o *HookOptions) error {
	if o.Keep == 0 {
		return nil
	}
	for _, disk := range disks {
		n := 0
		for _, tag := range h.daemon.manifests.Tags(disk) {
			if isHookTag(tag, o.Events) {
				n++
			}
		}
		if n >= o.Keep {
			return fmt.Errorf("disk %q has %d tags made by hooks, at most %d are to be kept, and "+
				"none is deleted without being asked for: raise the limit (cow-set \"keep\", "+
				"serve --keep), or clone the disk from a tag and go on there", disk, n, o.Keep)
		}
	}
	return nil
}

// logDropped logs the events that came too early.
func (h *hooks) logDropped() {
	if len(h.dropped) == 0 {
		return
	}
	h.log.Warn("events of QEMU came too soon after the last promotion and made no tags",
		"events", countsText(h.dropped),
		"after", h.last.UTC(), "min_interval", h.settings().Interval)
	clear(h.dropped)
}

// beginPause records that this process is about to pause the guest; end, that the guest continues.
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

// paused reports whether this process had paused the guest at this time.
func (h *hooks) paused(at time.Time) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.ContainsFunc(h.pauses, func(w pauseSpan) bool {
		// QEMU's times are whole microseconds.
		return !at.Before(w.from.Truncate(time.Microsecond)) && (w.to.IsZero() || !at.After(w.to))
	})
}

// monitorFor returns the hooks' connection to the monitor at address, or nil if they have none to
// it. QEMU serves one client per monitor, so no other connection is possible. An empty address
// matches the hooks' connection.
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

// countsText lists the events with their numbers: "RESUME 2, STOP 1".
func countsText(counts map[string]int) string {
	var parts []string
	for _, event := range slices.Sorted(maps.Keys(counts)) {
		parts = append(parts, fmt.Sprintf("%s %d", event, counts[event]))
	}
	return strings.Join(parts, ", ")
}
