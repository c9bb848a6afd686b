package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/digitalocean/go-qemu/qmp"
	"github.com/spf13/cobra"

	"cowblk/backend/client"
	"cowblk/backend/daemon"
	"cowblk/cow/store"
)

// watchOptions holds the options of "cowblk watch".
type watchOptions struct {
	threshold string
	limit     daemon.Threshold // parsed threshold
	timeout   time.Duration
}

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
	fl.StringVar(&o.threshold, "threshold", "",
		"the `SPACE` that must be free, as 5% or 10G (default: that of the serving processes)")
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
	if o.timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, o.timeout, errWatchTimeout)
		defer cancel()
	}
	low, err := client.Watch(ctx, client.WatchOptions{Store: st, Disks: names, Threshold: o.limit},
		a.printEvent)
	if errors.Is(err, context.DeadlineExceeded) && errors.Is(context.Cause(ctx), errWatchTimeout) {
		return fmt.Errorf("watch: %w (%s)", errWatchTimeout, o.timeout)
	}
	if err != nil {
		return err
	}
	return a.printSpaceLow(low)
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
		a.printf("inodes are low for %s: %d of %d free in %s, less than %d", strings.Join(low.Disks,
			", "), low.Files.Free, low.Files.Total, low.Path, low.Files.Least)
		return a.outputErr()
	}
	a.printf("space is low for %s: %s of %s free in %s, less than %s", strings.Join(low.Disks,
		", "), bytesText(low.Free), bytesText(low.Total), low.Path, bytesText(low.Threshold))
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
	a.printf("%s %s %s", at.Local().Format("2006-01-02 15:04:05"), e.Event,
		strings.Join(parts, " "))
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
