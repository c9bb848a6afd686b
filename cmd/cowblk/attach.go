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

	"cowblk/backend/client"
	"cowblk/backend/daemon"
	"cowblk/backend/qmp"
	"cowblk/cow/store"
)

// plugOptions holds the options of "cowblk attach" and "cowblk detach".
type plugOptions struct {
	store   *store.Store // set by preparePlug
	args    daemon.PlugArgs
	timeout time.Duration
}

func newAttach(a *app) *cobra.Command {
	var o plugOptions
	cmd := &cobra.Command{
		Use:   "attach NAME --qmp ADDRESS",
		Short: "Plug a served disk into a running QEMU",
		Long: `Hot-plug a served disk into a running QEMU. QEMU must have been started with shared memory (see
"cowblk qemu-args") and, on the q35 machine, with a free root port for each disk to be attached:
-device pcie-root-port,id=port1,chassis=1. Memory and ports cannot be changed later. After a failure
nothing is left in QEMU.

An attached disk reconnects when "cowblk serve" is restarted. A disk that libvirt has plugged in (virsh
attach-device) does not, because its chardev has no reconnect: detach it and attach it with this
command. "cowblk info NAME" shows which kind is connected.`,
		Example: `  cowblk attach vm1-data --qmp unix:/run/vm1.qmp
  cowblk attach vm1-data --qmp unix:/run/vm1.qmp --bus port3 --queues 4`,
		Args:              exactArgs("NAME"),
		ValidArgsFunction: a.complete(1, diskNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			v, err := a.preparePlug(&o, args[0])
			if err != nil {
				return err
			}
			if v == nil || v.Control == "" {
				return fmt.Errorf("disk %q is not served: start it first: %s", args[0],
					a.command("serve", args[0]))
			}
			return a.attach(cmd.Context(), v, &o)
		},
	}
	o.register(cmd, "how long QEMU may take")
	f := cmd.Flags()
	f.IntVar(&o.args.Queues, "queues", 0, "`NUMBER` of request queues (default: one for each vCPU)")
	f.StringVar(&o.args.Bus, "bus", "",
		"plug it into the bus of `PORT` (default: the first free root port)")
	return cmd
}

func newDetach(a *app) *cobra.Command {
	var o plugOptions
	cmd := &cobra.Command{
		Use:   "detach NAME --qmp ADDRESS",
		Short: "Take a disk away from a running QEMU",
		Long: `Request the disk from the guest, wait until the guest has released it, and remove it from QEMU. A guest
releases only a disk that is not in use: unmount its file systems first. If the guest does not answer
in time, it still can; repeat the command. Disks that QEMU was started with can be detached, too, if
they have a root port of their own.`,
		Example:           `  cowblk detach vm1-data --qmp unix:/run/vm1.qmp --timeout 1m`,
		Args:              exactArgs("NAME"),
		ValidArgsFunction: a.complete(1, diskNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			v, err := a.preparePlug(&o, args[0])
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

// preparePlug checks the options and returns the process that serves the disk; nil if no process
// does.
func (a *app) preparePlug(o *plugOptions, name string) (*store.Serving, error) {
	if o.timeout <= 0 {
		return nil, usagef("--timeout %s: expected a time above 0", o.timeout)
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
	// A starting process opens the disk before it has a control socket.
	for end := time.Now().Add(startTimeout); ; time.Sleep(startPoll) {
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
	startTimeout = 5 * time.Second
	startPoll    = 20 * time.Millisecond
)

func (a *app) attach(ctx context.Context, v *store.Serving, o *plugOptions) error {
	var plugged qmp.Plugged
	if err := o.runInDaemon(ctx, v, "cow-attach", &plugged); err != nil {
		return fmt.Errorf("attach %q: %w", o.args.Disk, err)
	}
	at := ""
	if plugged.Bus != "" {
		at = ", at " + plugged.Bus
	}
	a.printf("disk %s is attached: QEMU's device %s%s", o.args.Disk, plugged.ID, at)
	if a.json {
		return a.printJSON(plugged)
	}
	return nil
}

// detach works also when no process serves the disk.
func (a *app) detach(ctx context.Context, v *store.Serving, o *plugOptions) (err error) {
	if v != nil && v.Control != "" {
		err = o.runInDaemon(ctx, v, "cow-detach", nil)
	} else {
		err = o.detachDirect(ctx, a.logger())
	}
	if err != nil {
		return fmt.Errorf("detach %q: %w", o.args.Disk, err)
	}
	a.printf("disk %s is detached", o.args.Disk)
	return nil
}

// runInDaemon runs the command in the process that serves the disk, which may hold the connection
// to QEMU's monitor.
func (o *plugOptions) runInDaemon(ctx context.Context, v *store.Serving, command string,
	out any) error {
	c, err := client.Dial(ctx, o.store, v.Control, []string{o.args.Disk})
	if errors.Is(err, store.ErrRefused) {
		return err
	}
	if err != nil {
		return fmt.Errorf("process %d, which serves it, does not answer: %w", v.PID, err)
	}
	limited, cancel := context.WithTimeout(ctx, o.timeout+time.Minute) // a minute to undo
	defer cancel()
	err = c.Run(limited, command, o.args, out)
	if err != nil && ctx.Err() != nil {
		return interruptedf("it is not known whether QEMU has done it: repeat the command to find out")
	}
	return err
}

func (o *plugOptions) detachDirect(ctx context.Context, log *slog.Logger) error {
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

// absoluteAddress makes the path of a UNIX address absolute, for a process with another working
// directory.
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
