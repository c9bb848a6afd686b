package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"cowblk/backend/client"
	"cowblk/backend/control"
	"cowblk/backend/daemon"
	"cowblk/cow/store"
)

// errStopTimeout: the disks are still open at the time limit.
var errStopTimeout = errors.New("not stopped in time")

// stopPoll is the interval at which the lock of a disk is read.
const stopPoll = 20 * time.Millisecond

// stopOptions holds the options of "cowblk stop".
type stopOptions struct {
	wholeProcess bool // --whole-process
	timeout      time.Duration
}

// stopped is the JSON output for one disk.
type stopped struct {
	Name string `json:"name"`
	PID  int    `json:"pid,omitempty"` // of the process that had it open; absent: none
}

func newStop(a *app) *cobra.Command {
	var o stopOptions
	cmd := &cobra.Command{
		Use:   "stop NAME...",
		Short: "Stop serving disks, in order",
		Long: `Stop serving disks, as SIGTERM to their process does: requests in flight complete, written data is made
durable, and the disks are closed. The command returns when another process can open them. A disk that
no process has open is already stopped. Guests keep their disks and wait until they are served again:
shut a guest down first if it should not wait. On a full file system a disk may be closed without its
map after some seconds. That is an error, which says what is kept and what to do.

A process ends as a whole. If it also serves other disks, it is left alone unless those are named, too,
or --whole-process is given. The command waits for a process that has a disk open without serving it,
such as a check. A process that a supervisor restarts, such as systemd with Restart=always, must be
stopped there: systemctl stop UNIT.`,
		Example:           "  cowblk stop vm1\n  cowblk stop vm1 vm1-data --timeout 5m\n  cowblk stop vm1 --whole-process",
		Args:              distinctArgs(1, "NAME"),
		ValidArgsFunction: a.complete(-1, diskNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			if o.timeout <= 0 {
				return usagef("stop: --timeout %s: expected a time above 0", o.timeout)
			}
			s, err := a.openTrusted()
			if err != nil {
				return err
			}
			return a.stop(cmd.Context(), s, args, &o)
		},
	}
	cmd.Flags().BoolVar(&o.wholeProcess, "whole-process", false,
		"also stop the other disks of the same process")
	cmd.Flags().DurationVar(&o.timeout, "timeout", time.Minute,
		"how long the disks may take to be closed")
	return cmd
}

// stop checks all disks before it ends any process.
func (a *app) stop(ctx context.Context, s *store.Store, names []string, o *stopOptions) error {
	ctx, cancel := context.WithTimeoutCause(ctx, o.timeout, errStopTimeout)
	defer cancel()
	var open []stopped
	controls := map[string]int{} // PIDs by control socket
	for _, name := range names {
		if _, err := s.Disk(name); errors.Is(err, store.ErrNotFound) ||
			errors.Is(err, store.ErrInvalid) {
			return err // an unreadable disk may still be served
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
	written := map[string]bool{} // served writable
	for path, pid := range controls {
		c, err := control.DialContext(ctx, path, o.timeout)
		if errors.Is(err, control.ErrNoDaemon) {
			continue // already ending
		}
		if ctx.Err() != nil || errors.Is(err, os.ErrDeadlineExceeded) {
			return unanswered(ctx, pid, names, err)
		}
		if err != nil {
			return fmt.Errorf("stop: process %d does not answer: %w", pid, err)
		}
		disks, err := a.checkMayQuit(ctx, c, pid, names, o)
		if err == nil {
			if err = client.CheckStore(s, path, disks, names); err != nil {
				err = fmt.Errorf("stop: %w", err)
			}
		}
		if err != nil {
			return err
		}
		for _, d := range disks {
			written[d.Name] = !d.ReadOnly
		}
		clients[path] = c
	}
	for path, c := range clients {
		if err := c.Run(ctx, "quit", nil, nil); err != nil && !errors.Is(err, control.ErrClosed) &&
			!errors.Is(err, control.ErrNoDaemon) {
			return stopError(ctx, names, fmt.Errorf("process %d: %w", controls[path], err))
		}
	}
	var unwritten []string
	for i, d := range open {
		if err := a.waitStopped(ctx, s, &open[i], names[i:]); err != nil {
			return err
		}
		if written[d.Name] && s.Unclean(d.Name) {
			unwritten = append(unwritten, d.Name)
			continue
		}
		if d.PID == 0 {
			a.printf("%s is not open in any process", d.Name)
		} else {
			a.printf("%s is stopped", d.Name)
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

// stoppedUnwritten returns the error about disks that were closed without their maps.
func stoppedUnwritten(s *store.Store, names []string) error {
	reason := "the log of its process says why"
	if s.Full() {
		reason = syscall.ENOSPC.Error() + " on the store's file system"
	}
	if slices.ContainsFunc(names, s.SyncFailed) {
		return fmt.Errorf("stop: stopped, but a sync of the data failed: %s: %s\n"+
			"what was written since the last flush counts as lost, as at a power cut: the next process does not serve it. To read what the page cache still has of it, serve the disk with --keep-unflushed the next time",
			firstNames(names, 10), reason)
	}
	return fmt.Errorf("stop: stopped, but not all that was written is durable: %s: %s\n"+
		"until a reboot, the next process that serves it has all written data (not with serve --lose-unflushed). A power cut, a reboot or an unmount of the store's file system loses what was not flushed: "+
		"make space before, serve the disk, stop it", firstNames(names, 10), reason)
}

// checkMayQuit returns the disks of a process, or an error if it serves disks that are not named.
func (a *app) checkMayQuit(ctx context.Context, c *control.Client, pid int, names []string,
	o *stopOptions) ([]daemon.DiskInfo, error) {
	var disks []daemon.DiskInfo
	if err := c.Run(ctx, "query-cow-disks", daemon.DisksArgs{Store: true}, &disks); err != nil {
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
	if len(others) > 0 && !o.wholeProcess {
		return nil, fmt.Errorf(
			"stop: process %d also serves %s, and ends as a whole: %w\nto stop those too, add --whole-process",
			pid, firstNames(others, 10), store.ErrInUse)
	}
	return disks, nil
}

// waitStopped returns when no process has the disk open. left lists the disks that may still be
// open, for the error.
func (a *app) waitStopped(ctx context.Context, s *store.Store, d *stopped, left []string) error {
	for {
		v, err := s.ServingError(d.Name)
		switch {
		case err != nil:
			return fmt.Errorf("stop: %w", err)
		case v == nil:
			return nil
		case v.PID != 0 && d.PID != 0 && v.PID != d.PID && v.Control != "":
			return fmt.Errorf(
				"stop: disk %q was stopped and is %w again: %s\na supervisor has restarted it: stop it there, with systemd: systemctl stop UNIT",
				d.Name, store.ErrInUse, v)
		case d.PID == 0:
			d.PID = v.PID // it was being opened or closed
		}
		select {
		case <-ctx.Done():
			why := ""
			if s.Full() {
				why = "; the store's file system is full, which its process may be waiting for: make space there"
			}
			return stopError(ctx, left, fmt.Errorf("disk %q: %s%s", d.Name, v, why))
		case <-time.After(stopPoll):
		}
	}
}

// unanswered returns the error of a process that did not answer before it was told to end: at the
// time limit, or when a signal ended the wait.
func unanswered(ctx context.Context, pid int, names []string, err error) error {
	if ctx.Err() != nil && !errors.Is(context.Cause(ctx), errStopTimeout) {
		return stopError(ctx, names, err)
	}
	return fmt.Errorf("stop: %w: process %d does not answer: %w\nit was not told to end: see whether it is suspended or waits for a disk that hangs, or wait for longer with --timeout",
		errStopTimeout, pid, err)
}

// stopError adds to err why ctx ended and which disks may still be open.
func stopError(ctx context.Context, left []string, err error) error {
	switch {
	case errors.Is(context.Cause(ctx), errStopTimeout):
		return fmt.Errorf("stop: %w: %w\nits process is still ending: wait longer with --timeout",
			errStopTimeout, err)
	case ctx.Err() != nil:
		return interruptedf("it is not known whether these disks are stopped: %s",
			strings.Join(left, ", "))
	}
	return fmt.Errorf("stop: %w", err)
}
