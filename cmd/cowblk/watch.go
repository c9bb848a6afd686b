package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/digitalocean/go-qemu/qmp"
	"github.com/spf13/cobra"

	"cowblk/backend/daemon"
	"cowblk/cow/store"
)

// watchOptions holds the options of "cowblk watch".
type watchOptions struct {
	threshold string
	limit     daemon.Threshold // parsed threshold
	timeout   time.Duration
}

// watchPoll is the interval for measuring file systems and finding new daemons.
const watchPoll = time.Second

// errWatchTimeout: space did not become low before --timeout.
var errWatchTimeout = errors.New("space did not become low")

func newWatch(a *app) *cobra.Command {
	var o watchOptions
	cmd := &cobra.Command{
		Use:   "watch [NAME...] [--threshold SPACE]",
		Short: "Wait until space is low where disks grow, and show problems meanwhile",
		Long: `Wait until space is low on a file system with the heads of the named disks, or of all disks; then report
it and exit with code 0. If space is low already, return at once. Meanwhile problems are shown as they
occur: requests that fail, guests that are paused for lack of space and continue.

The threshold is that of each serving process ("cowblk serve --space-low", cow-set); stopped disks are
watched as soon as they are served. --threshold overrides it, and also watches stopped disks. After
--timeout the exit code is 7.

Free inodes count, too: the same percentage, or 5% with a threshold in bytes, must be free.

With --json every line is an object as on the control socket: "event", "data", "timestamp".`,
		Example: `  cowblk watch && mail -s 'cowblk needs space' root </dev/null
  cowblk watch vm1 vm2 --threshold 20G --timeout 1h
  cowblk watch --json | jq -r .event`,
		Args:              distinctArgs(0, "NAME"),
		ValidArgsFunction: a.complete(-1, diskNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := o.check(args); err != nil {
				return err
			}
			st, err := a.openTrusted()
			if err != nil {
				return err
			}
			return a.watch(cmd.Context(), st, args, &o)
		},
	}
	fl := cmd.Flags()
	fl.StringVar(&o.threshold, "threshold", "", "the `SPACE` that must be free, as 5% or 10G (default: that of the serving processes)")
	fl.DurationVar(&o.timeout, "timeout", 0, "wait for at most `TIME` (0: for ever)")
	return cmd
}

func (o *watchOptions) check(names []string) (err error) {
	if o.timeout < 0 {
		return usagef("watch: --timeout %s: expected a time above 0, or 0 for ever", o.timeout)
	}
	if o.threshold != "" {
		if o.limit, err = daemon.ParseSpace(o.threshold); err != nil {
			return usagef("watch: --threshold: %w", err)
		}
	}
	return nil
}

// watch returns nil when space is low.
func (a *app) watch(ctx context.Context, st *store.Store, names []string, o *watchOptions) error {
	for _, name := range names {
		if _, err := st.Disk(name); err != nil {
			return err
		}
	}
	limited := ctx
	if o.timeout > 0 {
		var cancel context.CancelFunc
		limited, cancel = context.WithTimeoutCause(ctx, o.timeout, errWatchTimeout)
		defer cancel()
	}
	w := &watcher{app: a, store: st, names: names, options: o, spaceLow: make(chan daemon.SpaceLow), events: make(chan qmp.Event), daemons: map[string]*watchedDaemon{}}
	listening, cancel := context.WithCancel(limited)
	defer func() { cancel(); w.running.Wait() }()
	tick := time.NewTicker(watchPoll)
	defer tick.Stop()
	for {
		if low, err := w.poll(listening); err != nil || low != nil {
			if err == nil {
				err = a.printSpaceLow(low)
			}
			return err
		}
		if done, err := w.showEvents(limited, tick.C); done || err != nil {
			return err
		}
	}
}

// showEvents prints events until the next tick; true: space is low, and printed.
func (w *watcher) showEvents(limited context.Context, tick <-chan time.Time) (done bool, err error) {
	for {
		select {
		case low := <-w.spaceLow:
			return true, w.app.printSpaceLow(&low)
		case e := <-w.events:
			if err := w.app.printEvent(e); err != nil {
				return true, err
			}
		case <-tick:
			return false, nil
		case <-limited.Done():
			if err := context.Cause(limited); errors.Is(err, errWatchTimeout) {
				return true, fmt.Errorf("watch: %w (%s)", err, w.options.timeout)
			}
			return true, limited.Err()
		}
	}
}

// poll measures free space, if --threshold is given, and connects to daemons that are not connected
// yet.
func (w *watcher) poll(ctx context.Context) (*daemon.SpaceLow, error) {
	manifests, err := w.store.Disks()
	if err != nil && len(w.names) == 0 && len(manifests) == 0 {
		return nil, err
	}
	var low *daemon.SpaceLow
	for _, m := range manifests {
		if !w.watches(m.Name) {
			continue
		}
		if s, ok := w.store.Serving(m.Name); ok && s.Control != "" {
			w.listen(ctx, s.Control)
		}
		if w.options.threshold == "" {
			continue
		}
		path := m.Head().Data
		if !filepath.IsAbs(path) {
			path = filepath.Join(w.store.Dir(), path)
		}
		found, ok := daemon.FreeSpace(path, w.options.limit)
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
	return len(w.names) == 0 || slices.Contains(w.names, disk)
}

func (a *app) printSpaceLow(low *daemon.SpaceLow) error {
	if a.json {
		data, err := json.Marshal(low)
		if err != nil {
			return err
		}
		return a.printEventJSON("COW_SPACE_LOW", data, time.Now())
	}
	if low.Free >= low.Threshold && low.Files.Low() {
		a.printf("inodes are low for %s: %d of %d free in %s, less than %d", strings.Join(low.Disks, ", "), low.Files.Free, low.Files.Total, low.Path, low.Files.Least)
		return a.outputErr()
	}
	a.printf("space is low for %s: %s of %s free in %s, less than %s", strings.Join(low.Disks, ", "), bytesText(low.Free), bytesText(low.Total), low.Path, bytesText(low.Threshold))
	return a.outputErr()
}

// printEvent prints the time, name and data of an event.
func (a *app) printEvent(e qmp.Event) error {
	at := time.Unix(e.Timestamp.Seconds, e.Timestamp.Microseconds*1000)
	if a.json {
		data, err := json.Marshal(e.Data)
		if err != nil {
			return err
		}
		return a.printEventJSON(e.Event, data, at)
	}
	var parts []string
	for k, v := range e.Data {
		parts = append(parts, k+"="+valueText(v))
	}
	slices.Sort(parts)
	a.printf("%s %s %s", at.Local().Format("2006-01-02 15:04:05"), e.Event, strings.Join(parts, " "))
	return a.outputErr()
}

// valueText formats a value of an event's data: a list as "a, b".
func valueText(v any) string {
	switch v := v.(type) {
	case string:
		return v
	case float64:
		return strconv.FormatFloat(v, 'f', -1, 64) // no exponents in sizes and offsets
	case []any:
		var all []string
		for _, e := range v {
			all = append(all, valueText(e))
		}
		return strings.Join(all, ", ")
	}
	text, err := json.Marshal(v)
	if err != nil {
		return "?"
	}
	return string(text)
}

// printEventJSON writes an event as on the control socket, on one line.
func (a *app) printEventJSON(event string, data json.RawMessage, at time.Time) error {
	type timestamp struct {
		Seconds      int64 `json:"seconds"`
		Microseconds int64 `json:"microseconds"`
	}
	e := json.NewEncoder(a.out)
	e.SetEscapeHTML(false)
	return e.Encode(struct {
		Event     string          `json:"event"`
		Data      json.RawMessage `json:"data"`
		Timestamp timestamp       `json:"timestamp"`
	}{event, data, timestamp{at.Unix(), int64(at.Nanosecond() / 1000)}})
}
