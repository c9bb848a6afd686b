package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"cowblk/backend"
	"cowblk/backend/control"
	"cowblk/cow/store"
)

// errStopTimeout: the disks are still open at the time limit.
var errStopTimeout = errors.New("not stopped in time")

// stopPoll is the time between two looks at a disk's lock.
const stopPoll = 20 * time.Millisecond

// stopOptions are those of "cowblk stop".
type stopOptions struct {
	whole   bool // --whole-process
	timeout time.Duration
}

// stopped is what "cowblk stop --json" prints of each disk.
type stopped struct {
	Name string `json:"name"`
	PID  int    `json:"pid,omitempty"` // of the process that had it open; absent: nobody had
}

func newStop(a *app) *cobra.Command {
	var o stopOptions
	cmd := &cobra.Command{
		Use:   "stop NAME...",
		Short: "End the serving of disks in order",
		Long: `End the serving of disks as SIGTERM to their process does: requests under way are completed, what was
written is made durable, the disks are closed. It returns when they are free for another process. A
disk that nobody has open is stopped already. Guests keep their disks and wait until they are served
again: shut a guest down first if it is not to wait. On a full file system a disk may have to be closed
without its map after some seconds. That is an error, which says what is kept and what is to be done.

A process ends as a whole. One that serves other disks too is left alone, unless those are named as
well or --whole-process is given. A process that has a disk open without serving it, such as a check,
is waited for. A process that a supervisor starts again, as systemd does with Restart=always, is
stopped there: systemctl stop UNIT.`,
		Example:           "  cowblk stop vm1\n  cowblk stop vm1 vm1-data --timeout 5m\n  cowblk stop vm1 --whole-process",
		Args:              atLeast(1, "NAME"),
		ValidArgsFunction: a.complete(-1, diskNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			if o.timeout <= 0 {
				return usagef("stop: --timeout %s: expected more than nothing", o.timeout)
			}
			s, err := a.openStore()
			if err != nil {
				return err
			}
			return a.stop(cmd.Context(), s, unique(args), &o)
		},
	}
	cmd.Flags().BoolVar(&o.whole, "whole-process", false, "also stop the other disks of the same process")
	cmd.Flags().DurationVar(&o.timeout, "timeout", time.Minute, "how long the disks may take to be closed")
	return cmd
}

// stop checks all before it ends any.
func (a *app) stop(ctx context.Context, s *store.Store, names []string, o *stopOptions) error {
	ctx, cancel := context.WithTimeoutCause(ctx, o.timeout, errStopTimeout)
	defer cancel()
	var open []stopped
	controls := map[string]int{} // sockets of the processes to end, and their ids
	for _, name := range names {
		if _, err := s.Disk(name); errors.Is(err, store.ErrNotFound) || errors.Is(err, store.ErrInvalid) {
			return err // one that cannot be read can be served nevertheless
		}
		v, err := s.ServingError(name)
		if err != nil {
			return fmt.Errorf("stop: %w", err)
		}
		if v == nil {
			v = &store.Serving{}
		}
		if v.Control != "" {
			controls[v.Control] = v.PID
		}
		open = append(open, stopped{name, v.PID})
	}
	clients := map[string]*control.Client{}
	written := map[string]bool{} // disks that are served to be written to
	for path, pid := range controls {
		c, err := control.DialContext(ctx, path, o.timeout)
		if errors.Is(err, control.ErrNoDaemon) {
			continue // it is just ending
		}
		if ctx.Err() != nil || errors.Is(err, os.ErrDeadlineExceeded) {
			return unanswered(ctx, pid, names, err)
		}
		if err != nil {
			return fmt.Errorf("stop: process %d does not answer: %w", pid, err)
		}
		disks, err := a.mayEnd(ctx, c, pid, names, o)
		if err != nil {
			return err
		}
		for _, d := range disks {
			written[d.Name] = !d.ReadOnly
		}
		clients[path] = c
	}
	for path, c := range clients {
		if err := c.Run(ctx, "quit", nil, nil); err != nil && !errors.Is(err, control.ErrClosed) && !errors.Is(err, control.ErrNoDaemon) {
			return stopError(ctx, names, fmt.Errorf("process %d: %w", controls[path], err))
		}
	}
	var unwritten []string
	for i, d := range open {
		if err := a.awaitStopped(ctx, s, &open[i], names[i:]); err != nil {
			return err
		}
		if written[d.Name] && s.Unwritten(d.Name) {
			unwritten = append(unwritten, d.Name)
			continue
		}
		if d.PID == 0 {
			a.say("%s is not open in any process", d.Name)
		} else {
			a.say("%s is stopped", d.Name)
		}
	}
	if len(unwritten) > 0 {
		return stoppedUnwritten(s, unwritten)
	}
	if a.json {
		return a.printJSON(open)
	}
	return nil
}

// stoppedUnwritten is the error about disks that were closed without their maps.
func stoppedUnwritten(s *store.Store, names []string) error {
	reason := "the log of its process says why"
	if s.Full() {
		reason = unix.ENOSPC.Error() + " on the store's file system"
	}
	return fmt.Errorf("stop: stopped, but not all that was written is durable: %s: %s\n"+
		"the next process that serves it in this run of the kernel has what was written (not with serve --lose-unflushed). A power cut, a reboot or an unmount of the store's file system loses what was not flushed: "+
		"make space before, serve the disk, stop it", firstNames(names, 10), reason)
}

// mayEnd refuses to end a process with disks that nobody has named, and returns those that it serves.
func (a *app) mayEnd(ctx context.Context, c *control.Client, pid int, names []string, o *stopOptions) ([]backend.DiskInfo, error) {
	var disks []backend.DiskInfo
	if err := c.Run(ctx, "query-cow-disks", nil, &disks); err != nil {
		if ctx.Err() != nil {
			return nil, unanswered(ctx, pid, names, err)
		}
		return nil, stopError(ctx, names, fmt.Errorf("process %d: %w", pid, err))
	}
	var others []string
	for _, d := range disks {
		if !slices.Contains(names, d.Name) {
			others = append(others, d.Name)
		}
	}
	if len(others) > 0 && !o.whole {
		return nil, fmt.Errorf("stop: process %d also serves %s, and ends as a whole: %w\nto stop those too, add --whole-process",
			pid, firstNames(others, 10), store.ErrInUse)
	}
	return disks, nil
}

// awaitStopped returns when the process that had the disk open has given it up. left are the disks not known to be.
func (a *app) awaitStopped(ctx context.Context, s *store.Store, d *stopped, left []string) error {
	for {
		v, err := s.ServingError(d.Name)
		switch {
		case err != nil:
			return fmt.Errorf("stop: %w", err)
		case v == nil:
			return nil
		case v.PID != 0 && d.PID != 0 && v.PID != d.PID && v.Control != "":
			return fmt.Errorf("stop: disk %q was stopped and is %w again: %s\na supervisor has started it anew: stop it there, with systemd: systemctl stop UNIT",
				d.Name, store.ErrInUse, v)
		case d.PID == 0:
			d.PID = v.PID // it was just being opened or closed
		}
		select {
		case <-ctx.Done():
			why := ""
			if s.Full() {
				why = "; the store's file system is full, which may be what its process waits for: make space there"
			}
			return stopError(ctx, left, fmt.Errorf("disk %q: %s%s", d.Name, v, why))
		case <-time.After(stopPoll):
		}
	}
}

// unanswered is the error of a process that says nothing, before it was told to end: at the time limit, or when a signal
// ends the wait.
func unanswered(ctx context.Context, pid int, names []string, err error) error {
	if ctx.Err() != nil && !errors.Is(context.Cause(ctx), errStopTimeout) {
		return stopError(ctx, names, err)
	}
	return fmt.Errorf("stop: %w: process %d does not answer: %w\nit was not told to end: see whether it is suspended or waits for a disk that hangs, or wait for longer with --timeout",
		errStopTimeout, pid, err)
}

// stopError says what the end of ctx was, and which disks may be open still.
func stopError(ctx context.Context, left []string, err error) error {
	switch {
	case errors.Is(context.Cause(ctx), errStopTimeout):
		return fmt.Errorf("stop: %w: %w\nits process goes on ending: wait for longer with --timeout", errStopTimeout, err)
	case ctx.Err() != nil:
		return interruptedf("whether these disks are stopped yet is not known: %s", strings.Join(left, ", "))
	}
	return fmt.Errorf("stop: %w", err)
}
