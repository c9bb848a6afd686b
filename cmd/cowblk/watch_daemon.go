package main

import (
	"context"
	"encoding/json"
	"slices"
	"sync"

	"github.com/digitalocean/go-qemu/qmp"

	"cowblk/backend"
	"cowblk/backend/control"
	"cowblk/cow/store"
)

// watcher is one run of "cowblk watch". Its own goroutine looks for processes; each process has one that listens to it
// until it has gone, and that it ends when the watching does.
type watcher struct {
	app      *app
	store    *store.Store
	names    []string // of disks; empty: all
	options  *watchOptions
	spaceLow chan backend.SpaceLow
	events   chan qmp.Event
	running  sync.WaitGroup

	mu      sync.Mutex
	daemons map[string]*watchedDaemon // by control socket: those that are listened to
}

// watchedDaemon is one process that serves disks.
type watchedDaemon struct {
	watcher *watcher
	path    string // of its control socket
}

// isShownEvent says which events are shown.
func isShownEvent(event string) bool {
	return event == "COW_IO_ERROR" || event == "COW_NOSPACE_RESUMED"
}

// listen begins to listen to the process behind a control socket, unless somebody does. After its end the next look
// finds it again, or the one that came after it.
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
	c, err := control.Dial(d.path, queryTimeout)
	if err != nil {
		return // it has just ended, or does not answer: the next look tries again
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

// querySpace reports false when space is low already, which it has told, or the watching is over.
func (d *watchedDaemon) querySpace(ctx context.Context, c *control.Client) bool {
	var all []backend.SpaceLow
	if err := c.Run(ctx, "query-cow-space", nil, &all); err != nil {
		return ctx.Err() == nil // its events will tell
	}
	for _, s := range all {
		if s.Low() && !d.reportLow(ctx, s) {
			return false
		}
	}
	return true
}

// reportLow reports false when the disks that are watched were among those whose space is low, or the watching is over.
func (d *watchedDaemon) reportLow(ctx context.Context, s backend.SpaceLow) bool {
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
		var s backend.SpaceLow
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
