package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"cowblk/backend"
	"cowblk/backend/control"
	"cowblk/backend/qmp"
	"cowblk/cow/store"
)

// promoteOptions are those of "cowblk promote".
type promoteOptions struct {
	tag     string
	spec    qmp.Spec
	timeout time.Duration
}

func newPromote(a *app) *cobra.Command {
	var o promoteOptions
	cmd := &cobra.Command{
		Use:   "promote NAME... [--tag TAG]",
		Short: "Seal a disk's head under a tag and put a new head on top, also while its guest runs",
		Long: `Seal a disk's head: what the disk holds now gets a name, never changes again, and other disks can
be created from it. A new, empty head goes on top. Nothing is copied. A guest that runs goes on: the
change is one moment's, whatever the disk's size and depth. Several disks of one process are cut at
the same moment, all of them or none.

What a running guest has not written yet is not in the tag. --quiesce says how to make it hold still:
  none   not at all; the tag is what a power cut would leave (default)
  guest  its file systems are frozen and thawed through qemu-ga: --agent, or --libvirt and --domain
  pause  its processors are stopped and continued, if they were running: --qmp, or --libvirt and --domain

Whatever goes wrong, the guest is thawed and continued, and runs on the old head or the new one.`,
		Example: `  cowblk promote vm1 --tag before-upgrade
  cowblk create vm2 --from vm1@before-upgrade
  cowblk promote vm1 vm1-data --quiesce guest --agent unix:/run/vm1-qga.sock
  cowblk promote vm1 --quiesce guest --libvirt qemu:///system --domain vm1`,
		Args:              distinct("NAME"),
		ValidArgsFunction: a.complete(-1, diskNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := o.check(cmd.Flags().Changed("quiesce")); err != nil {
				return err
			}
			s, err := a.openTrusted()
			if err != nil {
				return err
			}
			path, err := servedBy(s, args)
			var apart *apartError
			if errors.As(err, &apart) {
				return fmt.Errorf("%w, so that they cannot be cut at one moment: promote them one by one, or serve them together", err)
			}
			if err != nil {
				return err
			}
			if path == "" {
				return a.promoteStopped(cmd.Context(), s, args, &o)
			}
			return a.promoteServed(cmd.Context(), s, path, args, &o)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.tag, "tag", "", "`TAG` of the sealed layer (default: the time, as 20061127T120000Z)")
	f.StringVar(&o.spec.Mode, "quiesce", qmp.QuiesceNone, "how the guest is made to hold still: none, guest or pause")
	f.StringVar(&o.spec.QMP, "qmp", "", "`ADDRESS` of QEMU's monitor: unix:PATH")
	f.StringVar(&o.spec.Agent, "agent", "", "`ADDRESS` of the guest agent: unix:PATH or vsock:CID:PORT")
	f.StringVar(&o.spec.Libvirt, "libvirt", "", "`URI` of the libvirt that runs the guest, such as qemu:///system")
	f.StringVar(&o.spec.Domain, "domain", "", "`NAME` of the guest in libvirt")
	f.DurationVar(&o.timeout, "timeout", 10*time.Second, "how long freezing, and how long thawing may take")
	_ = cmd.RegisterFlagCompletionFunc("quiesce", cobra.FixedCompletions(
		[]cobra.Completion{qmp.QuiesceNone, qmp.QuiesceGuest, qmp.QuiescePause}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// check also refuses a guest's address where nothing is said about quiescing (told): it would be of no use, and the tag
// not what was meant.
func (o *promoteOptions) check(told bool) error {
	if err := o.spec.Check(); err != nil && !told {
		return usagef("promote: %w\na tag of a guest that is not quiesced: --quiesce none", err)
	}
	if o.timeout <= 0 {
		return usagef("promote: --timeout %s: expected more than nothing", o.timeout)
	}
	if !o.spec.Active() {
		return nil
	}
	h, err := o.spec.Open(nil, nil)
	if err != nil {
		return usagef("promote: %w", err)
	}
	h.Close()
	o.spec.QMP, o.spec.Agent = absoluteAddress(o.spec.QMP), absoluteAddress(o.spec.Agent)
	return nil
}

// apartError says that disks are not served by one process, nor all stopped. It is an ErrInUse.
type apartError struct {
	a, b             string
	aServed, bServed bool
}

func (e *apartError) Error() string {
	switch {
	case !e.aServed:
		return fmt.Sprintf("disk %q is in use, served by a process, and disk %q is stopped", e.b, e.a)
	case !e.bServed:
		return fmt.Sprintf("disk %q is in use, served by a process, and disk %q is stopped", e.a, e.b)
	}
	return fmt.Sprintf("disks %q and %q are in use, and not served by one process", e.a, e.b)
}

func (e *apartError) Unwrap() error { return store.ErrInUse }

// servedBy is the control socket of the process that serves the disks; empty if all are stopped. Otherwise it is
// an apartError.
func servedBy(s *store.Store, names []string) (path string, err error) {
	for i, name := range names {
		if _, err := s.Disk(name); err != nil {
			return "", err
		}
		at := ""
		v, err := s.ServingError(name)
		if err != nil {
			return "", err
		}
		if v != nil {
			if at = v.Control; at == "" {
				return "", fmt.Errorf("disk %q is %w: %s", name, store.ErrInUse, v)
			}
		}
		if i > 0 && at != path {
			return "", &apartError{names[0], name, path != "", at != ""}
		}
		path = at
	}
	return path, nil
}

func (a *app) promoteStopped(ctx context.Context, s *store.Store, names []string, o *promoteOptions) error {
	if o.spec.Active() {
		return usagef("promote: disk %q is stopped: there is no guest to quiesce; leave --quiesce out", names[0])
	}
	done, err := s.Promote(ctx, names, o.tag)
	for _, p := range done {
		a.say("%s@%s is sealed; %s now has %s", p.Disk, p.Tag, p.Disk, countText(int64(p.Depth), "layer"))
	}
	if a.json && done != nil {
		err = errors.Join(err, a.printJSON(done))
	}
	return err
}

// promoteServed has the daemon do it. If the daemon dies in between, this process sees to it that the guest goes on; if
// this process dies, the daemon does.
func (a *app) promoteServed(ctx context.Context, s *store.Store, path string, names []string, o *promoteOptions) error {
	c, err := reach(ctx, s, path, names)
	if errors.Is(err, store.ErrRefused) {
		return fmt.Errorf("promote: %w", err)
	}
	if err != nil {
		return fmt.Errorf("the process that serves %q does not answer: %w", names[0], err)
	}
	args := backend.PromoteArgs{Disks: names, Tag: o.tag, Spec: o.spec, Timeout: o.timeout.Seconds()}
	wait, cancel := context.WithTimeout(ctx, 2*o.timeout+time.Minute)
	defer cancel()
	var p backend.Promoted
	if err := c.Run(wait, "cow-promote", args, &p); err != nil {
		if ctx.Err() != nil {
			// The daemon gives up what it has not done yet, and lets the guest go on.
			return interruptedf("the process that serves the disks may have promoted them before: %s shows their tags", a.command("info", names[0]))
		}
		var answered *control.Error
		if !errors.As(err, &answered) && o.spec.Active() {
			err = errors.Join(fmt.Errorf("the daemon went away: the disks are on the old heads or on the new ones, %s says which: %w", a.command("info", names[0]), err), o.release())
		}
		return fmt.Errorf("promote: %w", err)
	}
	for _, d := range p.Disks {
		a.say("%s@%s is cut; %s now has %s", d.Disk, p.Tag, d.Disk, countText(int64(d.Depth), "layer"))
	}
	if p.HeldTime > 0 {
		a.say("the guest held still for %.1f ms (quiesce %s)", p.HeldTime, p.Quiesce)
	}
	if a.json {
		return a.printJSON(p)
	}
	return nil
}

// release lets a guest go on that the dead daemon may have frozen or paused.
func (o *promoteOptions) release() error {
	h, err := o.spec.Open(nil, nil)
	if err != nil {
		return err
	}
	defer h.Close()
	ctx, cancel := context.WithTimeout(context.Background(), o.timeout)
	defer cancel()
	return h.Release(ctx)
}
