package main

import (
	"context"
	"encoding/json"
	"slices"
	"sync"

	"github.com/digitalocean/go-qemu/qmp"

	"cowblk/backend/control"
	"cowblk/backend/daemon"
	"cowblk/cow/store"
)

// watcher is one run of "cowblk watch". Its goroutine looks for daemons. Each daemon has a
// goroutine that receives its events until the daemon or the watcher ends.
type watcher struct {
	app      *app
	store    *store.Store
	names    []string // of disks; empty: all
	options  *watchOptions
	spaceLow chan daemon.SpaceLow
	events   chan qmp.Event
	running  sync.WaitGroup

	mu      sync.Mutex
	daemons map[string]*watchedDaemon // connected daemons by control socket
}

// watchedDaemon is one process that serves disks.
type watchedDaemon struct {
	watcher *watcher
	path    string // of its control socket
}

// isShownEvent reports whether an event is printed.
func isShownEvent(event string) bool {
	return event == "COW_IO_ERROR" || event == "COW_NOSPACE_RESUMED"
}

// listen connects to the daemon behind a control socket unless it is connected. After the daemon
// ends, the next poll connects again.
func (w *watcher) listen(ctx context.Context, path string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.daemons[path] != nil {
		return
	}
	d := &watchedDaemon{watcher: w, path: path}
	w.daemons[path] = d
	w.running.Go(func() {
		d.run(ctx)
		w.mu.Lock()
		delete(w.daemons, path)
		w.mu.Unlock()
	})
}

func (d *watchedDaemon) run(ctx context.Context) {
	c, err := control.DialContext(ctx, d.path, queryTimeout)
	if err != nil {
		return // ended or not answering: the next poll tries again
	}
	events, err := c.Events(ctx)
	if err != nil {
		return
	}
	if d.watcher.options.threshold == "" && !d.querySpace(ctx, c) {
		return
	}
	for e := range events {
		d.handle(ctx, e)
	}
}

// querySpace reports false if space is low, which it has reported, or if ctx ended.
func (d *watchedDaemon) querySpace(ctx context.Context, c *control.Client) bool {
	var all []daemon.SpaceLow
	if err := c.Run(ctx, "query-cow-space", nil, &all); err != nil {
		return ctx.Err() == nil // events will report it
	}
	for _, s := range all {
		if s.Low() && !d.reportLow(ctx, s) {
			return false
		}
	}
	return true
}

// reportLow reports false if s concerns a watched disk, or if ctx ended.
func (d *watchedDaemon) reportLow(ctx context.Context, s daemon.SpaceLow) bool {
	if !slices.ContainsFunc(s.Disks, d.watcher.watches) {
		return true
	}
	select {
	case d.watcher.spaceLow <- s:
	case <-ctx.Done():
	}
	return false
}

func (d *watchedDaemon) handle(ctx context.Context, e qmp.Event) {
	w := d.watcher
	if e.Event == "COW_SPACE_LOW" && w.options.threshold == "" {
		var s daemon.SpaceLow
		if raw, err := json.Marshal(e.Data); err == nil && json.Unmarshal(raw, &s) == nil {
			d.reportLow(ctx, s)
		}
		return
	}
	disk, _ := e.Data["disk"].(string)
	if !isShownEvent(e.Event) || !w.watches(disk) {
		return
	}
	select {
	case w.events <- e:
	case <-ctx.Done():
	}
}
