package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"cowblk/backend"
	"cowblk/backend/qmp"
	"cowblk/cow/store"
)

// plugOptions are those of "cowblk attach" and "cowblk detach".
type plugOptions struct {
	store   *store.Store // set by plugStart
	args    backend.PlugArgs
	timeout time.Duration
}

func newAttach(a *app) *cobra.Command {
	var o plugOptions
	cmd := &cobra.Command{
		Use:   "attach NAME --qmp ADDRESS",
		Short: "Plug a served disk into a running QEMU",
		Long: `Plug a disk that "cowblk serve" serves into a QEMU that runs already. QEMU must have been started
with shared memory (as "cowblk qemu-args" has it) and, on the q35 machine, with a root port that is
still free for each disk to come: -device pcie-root-port,id=port1,chassis=1. The guest's memory and
the ports cannot be changed later. After a failure nothing is left in QEMU.

A disk that is attached here connects anew by itself when "cowblk serve" is restarted. One that libvirt
has plugged in (virsh attach-device) does not, for its chardev has no reconnect: detach it and attach it
here. "cowblk info NAME" says which kind is connected.`,
		Example: `  cowblk attach vm1-data --qmp unix:/run/vm1.qmp
  cowblk attach vm1-data --qmp unix:/run/vm1.qmp --bus port3 --queues 4`,
		Args:              exactArgs("NAME"),
		ValidArgsFunction: a.complete(1, diskNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			v, err := a.plugStart(&o, args[0])
			if err != nil {
				return err
			}
			if v == nil || v.Control == "" {
				return fmt.Errorf("disk %q is not served: start it first: %s", args[0], a.command("serve", args[0]))
			}
			return a.attach(cmd.Context(), v, &o)
		},
	}
	o.register(cmd, "how long QEMU may take")
	f := cmd.Flags()
	f.IntVar(&o.args.Queues, "queues", 0, "`NUMBER` of request queues (default: one for each vCPU)")
	f.StringVar(&o.args.Bus, "bus", "", "plug it into the bus of `PORT` (default: the first free root port)")
	return cmd
}

func newDetach(a *app) *cobra.Command {
	var o plugOptions
	cmd := &cobra.Command{
		Use:   "detach NAME --qmp ADDRESS",
		Short: "Take a disk away from a running QEMU",
		Long: `Ask the guest to give a disk back, wait until it has, and remove the disk from QEMU. A guest gives
back what it does not use: unmount file systems first. One that has not answered in time still can;
the command may then be repeated. Disks that QEMU was started with can be taken away too, if they are
on a root port of their own.`,
		Example:           `  cowblk detach vm1-data --qmp unix:/run/vm1.qmp --timeout 1m`,
		Args:              exactArgs("NAME"),
		ValidArgsFunction: a.complete(1, diskNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			v, err := a.plugStart(&o, args[0])
			if err != nil {
				return err
			}
			return a.detach(cmd.Context(), v, &o)
		},
	}
	o.register(cmd, "how long the guest may take")
	return cmd
}

func (o *plugOptions) register(cmd *cobra.Command, limit string) {
	f := cmd.Flags()
	f.StringVar(&o.args.QMP, "qmp", "", "`ADDRESS` of QEMU's monitor: unix:PATH")
	_ = f.SetAnnotation("qmp", noDefault, []string{})
	f.StringVar(&o.args.ID, "id", "", "`ID` of the device in QEMU (default: disk-NAME)")
	f.DurationVar(&o.timeout, "timeout", 10*time.Second, limit)
}

// plugStart checks the options and finds who serves the disk; nil: nobody.
func (a *app) plugStart(o *plugOptions, name string) (*store.Serving, error) {
	if o.timeout <= 0 {
		return nil, usagef("--timeout %s: expected more than nothing", o.timeout)
	}
	if o.args.QMP == "" {
		return nil, usagef("--qmp is missing: the address of QEMU's monitor, unix:PATH (QEMU's -qmp unix:PATH,server=on,wait=off)")
	}
	if _, err := qmp.ParseAddress(o.args.QMP); err != nil {
		return nil, usagef("--qmp: %w", err)
	}
	o.args.Disk, o.args.QMP, o.args.Timeout = name, absoluteAddress(o.args.QMP), o.timeout.Seconds()
	s, err := a.openTrusted()
	if err != nil {
		return nil, err
	}
	o.store = s
	if _, err := s.Disk(name); err != nil {
		return nil, err
	}
	// A process that starts to serve the disk has it open before it can be asked.
	for end := time.Now().Add(startLimit); ; time.Sleep(startPoll) {
		v, err := s.ServingError(name)
		if err != nil {
			return nil, err
		}
		if v == nil || v.Socket != "" || time.Now().After(end) {
			return v, nil
		}
	}
}

const (
	startLimit = 5 * time.Second
	startPoll  = 20 * time.Millisecond
)

func (a *app) attach(ctx context.Context, v *store.Serving, o *plugOptions) error {
	var made qmp.Plugged
	if err := o.ask(ctx, v, "cow-attach", &made); err != nil {
		return fmt.Errorf("attach %q: %w", o.args.Disk, err)
	}
	at := ""
	if made.Bus != "" {
		at = ", at " + made.Bus
	}
	a.say("disk %s is attached: QEMU's device %s%s", o.args.Disk, made.ID, at)
	if a.json {
		return a.printJSON(made)
	}
	return nil
}

// detach also works when nobody serves the disk any more.
func (a *app) detach(ctx context.Context, v *store.Serving, o *plugOptions) (err error) {
	if v != nil && v.Control != "" {
		err = o.ask(ctx, v, "cow-detach", nil)
	} else {
		err = o.detachHere(ctx, a.logger())
	}
	if err != nil {
		return fmt.Errorf("detach %q: %w", o.args.Disk, err)
	}
	a.say("disk %s is detached", o.args.Disk)
	return nil
}

// ask has the process that serves the disk do it: that may be the one that holds QEMU's monitor.
func (o *plugOptions) ask(ctx context.Context, v *store.Serving, command string, out any) error {
	c, err := reach(ctx, o.store, v.Control, []string{o.args.Disk})
	if errors.Is(err, store.ErrRefused) {
		return err
	}
	if err != nil {
		return fmt.Errorf("process %d, which serves it, does not answer: %w", v.PID, err)
	}
	limited, cancel := context.WithTimeout(ctx, o.timeout+time.Minute) // time to undo
	defer cancel()
	err = c.Run(limited, command, o.args, out)
	if err != nil && ctx.Err() != nil {
		return interruptedf("whether QEMU has done it is not known: repeat the command to see")
	}
	return err
}

func (o *plugOptions) detachHere(ctx context.Context, log *slog.Logger) error {
	addr, err := qmp.ParseAddress(o.args.QMP)
	if err != nil {
		return err
	}
	m := qmp.NewMonitor(qmp.MonitorOptions{Log: log, Address: addr})
	defer m.Close()
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	return qmp.Detach(ctx, m, o.args.Disk, o.args.ID)
}

// absoluteAddress is an address that means the same in a process with another working directory.
func absoluteAddress(s string) string {
	path, ok := strings.CutPrefix(s, "unix:")
	if !ok || path == "" {
		return s
	}
	if abs, err := filepath.Abs(path); err == nil {
		return "unix:" + abs
	}
	return s
}
