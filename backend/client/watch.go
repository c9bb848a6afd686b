package client

import (
	"context"
	"encoding/json"
	"slices"
	"sync"
	"time"

	"github.com/digitalocean/go-qemu/qmp"

	"cowblk/backend/control"
	"cowblk/backend/daemon"
	"cowblk/cow/store"
)

// WatchOptions selects what Watch waits for.
type WatchOptions struct {
	Store *store.Store
	Disks []string // empty: all
	// Threshold of free space, also for stopped disks; zero: that of each serving process.
	Threshold daemon.Threshold
}

// watchPoll is the interval for measuring file systems and finding new processes.
const watchPoll = time.Second

// watcher is one run of Watch.
type watcher struct {
	WatchOptions
	spaceLow chan daemon.SpaceLow
	events   chan qmp.Event
	running  sync.WaitGroup

	mu       sync.Mutex
	watching map[string]bool // control sockets of connected processes
}

// Watch returns when space is low on a file system with the heads of the disks, which it reports.
// Meanwhile it calls show for failed requests of the disks and for guests that continue. Errors:
// ctx's, show's, and those of store.Disks if no disk can be read.
func Watch(ctx context.Context, o WatchOptions, show func(qmp.Event) error) (*daemon.SpaceLow,
	error) {
	w := &watcher{WatchOptions: o, spaceLow: make(chan daemon.SpaceLow),
		events: make(chan qmp.Event), watching: map[string]bool{}}
	ctx, cancel := context.WithCancel(ctx)
	defer func() { cancel(); w.running.Wait() }()
	tick := time.NewTicker(watchPoll)
	defer tick.Stop()
	for {
		if low, err := w.poll(ctx); err != nil || low != nil {
			return low, err
		}
		for polled := true; polled; {
			select {
			case low := <-w.spaceLow:
				return &low, nil
			case e := <-w.events:
				if err := show(e); err != nil {
					return nil, err
				}
			case <-tick.C:
				polled = false
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
	}
}

// poll measures free space, if there is a threshold, and connects to processes that are not
// connected yet.
func (w *watcher) poll(ctx context.Context) (low *daemon.SpaceLow, err error) {
	all, err := w.Store.Disks()
	if err != nil && len(w.Disks) == 0 && len(all) == 0 {
		return nil, err
	}
	for _, m := range all {
		if !w.watches(m.Name) {
			continue
		}
		if s, ok := w.Store.Serving(m.Name); ok && s.Control != "" {
			w.listen(ctx, s.Control)
		}
		if w.Threshold == (daemon.Threshold{}) {
			continue
		}
		found, ok := daemon.FreeSpace(w.Store.HeadData(m), w.Threshold)
		found.Disks = []string{m.Name}
		switch {
		case !ok || !found.Low():
		case low == nil:
			low = &found
		case low.Total == found.Total: // the same file system, unless two have the same size
			low.Disks = append(low.Disks, m.Name)
		}
	}
	return low, nil
}

// watches reports whether the disk is watched.
func (w *watcher) watches(disk string) bool {
	return len(w.Disks) == 0 || slices.Contains(w.Disks, disk)
}

// listen connects to the process behind a control socket unless it is connected. After the process
// ends, the next poll connects again.
func (w *watcher) listen(ctx context.Context, path string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.watching[path] {
		return
	}
	w.watching[path] = true
	w.running.Go(func() {
		w.watchProcess(ctx, path)
		w.mu.Lock()
		delete(w.watching, path)
		w.mu.Unlock()
	})
}

func (w *watcher) watchProcess(ctx context.Context, path string) {
	c, err := control.DialContext(ctx, path, QueryTimeout)
	if err != nil {
		return // ended or not answering: the next poll tries again
	}
	events, err := c.Events(ctx)
	if err != nil {
		return
	}
	if w.Threshold == (daemon.Threshold{}) && !w.querySpace(ctx, c) {
		return
	}
	for e := range events {
		w.handle(ctx, e)
	}
}

// querySpace reports false if space is low, which it has reported, or if ctx ended.
func (w *watcher) querySpace(ctx context.Context, c *control.Client) bool {
	var all []daemon.SpaceLow
	if err := c.Run(ctx, "query-cow-space", nil, &all); err != nil {
		return ctx.Err() == nil // events will report it
	}
	for _, s := range all {
		if s.Low() && !w.reportLow(ctx, s) {
			return false
		}
	}
	return true
}

// reportLow reports false if s concerns a watched disk, or if ctx ended.
func (w *watcher) reportLow(ctx context.Context, s daemon.SpaceLow) bool {
	if !slices.ContainsFunc(s.Disks, w.watches) {
		return true
	}
	select {
	case w.spaceLow <- s:
	case <-ctx.Done():
	}
	return false
}

func (w *watcher) handle(ctx context.Context, e qmp.Event) {
	switch e.Event {
	case "COW_SPACE_LOW":
		var s daemon.SpaceLow
		raw, err := json.Marshal(e.Data)
		if w.Threshold == (daemon.Threshold{}) && err == nil && json.Unmarshal(raw, &s) == nil {
			w.reportLow(ctx, s)
		}
	case "COW_IO_ERROR", "COW_NOSPACE_RESUMED":
		if disk, _ := e.Data["disk"].(string); !w.watches(disk) {
			return
		}
		select {
		case w.events <- e:
		case <-ctx.Done():
		}
	}
}
