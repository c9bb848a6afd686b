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

	"cowblk/backend"
	"cowblk/cow/store"
)

// watchOptions are those of "cowblk watch".
type watchOptions struct {
	threshold string
	limit     backend.Threshold // of threshold
	timeout   time.Duration
}

// watchPoll is how often file systems are measured and processes looked for that are not there.
const watchPoll = time.Second

// errWatchTimeout says that what was waited for has not happened.
var errWatchTimeout = errors.New("space was not low in that time")

func newWatch(a *app) *cobra.Command {
	var o watchOptions
	cmd := &cobra.Command{
		Use:   "watch [NAME...] [--threshold SPACE]",
		Short: "Wait until space is low where disks grow, and show what goes wrong meanwhile",
		Long: `Wait until little space is left where the heads of disks grow, of all disks or of those that are named:
then say so, and exit with code 0. If it is so already, at once. What goes wrong before is shown as it
happens: requests that fail, guests that are paused for want of space and go on.

How little is little is what each serving process was told ("cowblk serve --space-low", cow-set); disks
that nobody serves are watched as soon as somebody does. With --threshold it is said here, and the disks
may be stopped. After --timeout the exit code is 7.

Files (inodes) that run out are as bad: the same share of them, 5% with a threshold in bytes, should be free.

With --json every line is an object as on the control socket: "event", "data", "timestamp".`,
		Example: `  cowblk watch && mail -s 'cowblk needs space' root </dev/null
  cowblk watch vm1 vm2 --threshold 20G --timeout 1h
  cowblk watch --json | jq -r .event`,
		ValidArgsFunction: a.complete(-1, diskNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := o.check(args); err != nil {
				return err
			}
			st, err := a.openStore()
			if err != nil {
				return err
			}
			return a.watch(cmd.Context(), st, args, &o)
		},
	}
	fl := cmd.Flags()
	fl.StringVar(&o.threshold, "threshold", "", "the `SPACE` that should be free, as 5% or 10G (default: what the serving processes were told)")
	fl.DurationVar(&o.timeout, "timeout", 0, "wait so long at most (`TIME`; 0: for ever)")
	return cmd
}

func (o *watchOptions) check(names []string) (err error) {
	if o.timeout < 0 {
		return usagef("watch: --timeout %s: expected more than nothing, or 0 for ever", o.timeout)
	}
	if o.threshold != "" {
		if o.limit, err = backend.ParseSpace(o.threshold); err != nil {
			return usagef("watch: --threshold: %w", err)
		}
	}
	for i, n := range names {
		if slices.Contains(names[:i], n) {
			return usagef("watch: disk %q is named twice", n)
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
	over := ctx
	if o.timeout > 0 {
		var cancel context.CancelFunc
		over, cancel = context.WithTimeoutCause(ctx, o.timeout, errWatchTimeout)
		defer cancel()
	}
	w := &watcher{app: a, store: st, names: names, options: o, found: make(chan backend.SpaceLow), events: make(chan qmp.Event), daemons: map[string]*watchedDaemon{}}
	watching, cancel := context.WithCancel(over)
	defer func() { cancel(); w.running.Wait() }()
	tick := time.NewTicker(watchPoll)
	defer tick.Stop()
	for {
		if low, err := w.look(watching); err != nil || low != nil {
			if err == nil {
				err = a.printLow(low)
			}
			return err
		}
		if done, err := w.await(over, tick.C); done || err != nil {
			return err
		}
	}
}

// await shows what comes until it is time to look again; true: space is low, which it has told.
func (w *watcher) await(over context.Context, tick <-chan time.Time) (done bool, err error) {
	for {
		select {
		case low := <-w.found:
			return true, w.app.printLow(&low)
		case e := <-w.events:
			if err := w.app.printEvent(e); err != nil {
				return true, err
			}
		case <-tick:
			return false, nil
		case <-over.Done():
			if err := context.Cause(over); errors.Is(err, errWatchTimeout) {
				return true, fmt.Errorf("watch: %w (%s)", err, w.options.timeout)
			}
			return true, over.Err()
		}
	}
}

// look measures, if that is up to us, and sees to it that every process that serves our disks is listened to.
func (w *watcher) look(ctx context.Context) (*backend.SpaceLow, error) {
	manifests, err := w.store.Disks()
	if err != nil && len(w.names) == 0 && len(manifests) == 0 {
		return nil, err
	}
	var low *backend.SpaceLow
	for _, m := range manifests {
		if !w.wants(m.Name) {
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
		found, ok := backend.FreeSpace(path, w.options.limit)
		found.Disks = []string{m.Name}
		switch {
		case !ok || !found.Low():
		case low == nil:
			low = &found
		case low.Total == found.Total: // the same file system, unless two are of one size
			low.Disks = append(low.Disks, m.Name)
		}
	}
	return low, nil
}

// wants reports whether the disk is one that is watched.
func (w *watcher) wants(disk string) bool { return len(w.names) == 0 || slices.Contains(w.names, disk) }

func (a *app) printLow(low *backend.SpaceLow) error {
	if a.json {
		data, err := json.Marshal(low)
		if err != nil {
			return err
		}
		return a.printLine("COW_SPACE_LOW", data, time.Now())
	}
	if low.Free >= low.Threshold && low.Files.Low() {
		a.say("files (inodes) run out for %s: %d of %d free in %s, less than %d", strings.Join(low.Disks, ", "), low.Files.Free, low.Files.Total, low.Path, low.Files.Least)
		return a.lostOutput()
	}
	a.say("space is low for %s: %s of %s free in %s, less than %s", strings.Join(low.Disks, ", "), bytesText(low.Free), bytesText(low.Total), low.Path, bytesText(low.Threshold))
	return a.lostOutput()
}

// printEvent shows an event: its time, name and data.
func (a *app) printEvent(e qmp.Event) error {
	at := time.Unix(e.Timestamp.Seconds, e.Timestamp.Microseconds*1000)
	if a.json {
		data, err := json.Marshal(e.Data)
		if err != nil {
			return err
		}
		return a.printLine(e.Event, data, at)
	}
	var parts []string
	for k, v := range e.Data {
		parts = append(parts, k+"="+valueText(v))
	}
	slices.Sort(parts)
	a.say("%s %s %s", at.Local().Format("2006-01-02 15:04:05"), e.Event, strings.Join(parts, " "))
	return a.lostOutput()
}

// valueText writes a value of an event's data for a person: a list as "a, b".
func valueText(v any) string {
	switch v := v.(type) {
	case string:
		return v
	case float64:
		return strconv.FormatFloat(v, 'f', -1, 64) // sizes and offsets, without an exponent
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

// printLine writes an event as the control socket does, on one line.
func (a *app) printLine(event string, data json.RawMessage, at time.Time) error {
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
