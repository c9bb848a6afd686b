package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"cowblk/backend/client"
	"cowblk/backend/control"
	"cowblk/backend/daemon"
	"cowblk/backend/qmp"
	"cowblk/cow/store"
)

// promoteOptions holds the options of "cowblk promote".
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
		Long: `Seal a disk's head: the present content of the disk gets a name, never changes again, and can be the
base of other disks. A new, empty head is put on top. Nothing is copied. A running guest continues: the
heads are swapped in an instant, whatever the disk's size and depth. Several disks of one process are
promoted at the same instant, all of them or none.

Data that a running guest has not written yet is not in the tag. --quiesce selects how the guest is
quiesced:
  none   not at all; the tag is crash-consistent (default)
  guest  its file systems are frozen and thawed through qemu-ga: --agent, or --libvirt and --domain
  pause  its processors are stopped and continued, if they were running: --qmp, or --libvirt and --domain

After any failure the guest is thawed and continued, and runs on the old head or the new one.`,
		Example: `  cowblk promote vm1 --tag before-upgrade
  cowblk create vm2 --from vm1@before-upgrade
  cowblk promote vm1 vm1-data --quiesce guest --agent unix:/run/vm1-qga.sock
  cowblk promote vm1 --quiesce guest --libvirt qemu:///system --domain vm1`,
		Args:              distinctArgs(1, "NAME"),
		ValidArgsFunction: a.complete(-1, diskNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := o.check(cmd.Flags().Changed("quiesce")); err != nil {
				return err
			}
			s, err := a.openTrusted()
			if err != nil {
				return err
			}
			path, err := client.ControlSocket(s, args)
			var apart *client.NotOneProcessError
			if errors.As(err, &apart) {
				return fmt.Errorf(
					"%w, so they cannot be promoted at one moment: promote them one by one, or serve them from one process", err)
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
	f.StringVar(&o.tag, "tag", "",
		"`TAG` of the sealed layer (default: the time, as 20061127T120000Z)")
	f.StringVar(&o.spec.Mode, "quiesce", qmp.QuiesceNone,
		"how the guest is quiesced: none, guest or pause")
	f.StringVar(&o.spec.QMP, "qmp", "", "`ADDRESS` of QEMU's monitor: unix:PATH")
	f.StringVar(&o.spec.Agent, "agent", "",
		"`ADDRESS` of the guest agent: unix:PATH or vsock:CID:PORT")
	f.StringVar(&o.spec.Libvirt, "libvirt", "",
		"`URI` of the libvirt that runs the guest, such as qemu:///system")
	f.StringVar(&o.spec.Domain, "domain", "", "`NAME` of the guest in libvirt")
	f.DurationVar(&o.timeout, "timeout", 10*time.Second, "time limit of freezing, and of thawing")
	_ = cmd.RegisterFlagCompletionFunc("quiesce", cobra.FixedCompletions(
		[]cobra.Completion{qmp.QuiesceNone, qmp.QuiesceGuest, qmp.QuiescePause},
		cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// check validates the options. If --quiesce is not explicit, it refuses the address of a guest,
// which would have no effect.
func (o *promoteOptions) check(explicit bool) error {
	if err := o.spec.Check(); err != nil && !explicit {
		return usagef("promote: %w\nfor a tag without quiescing the guest: --quiesce none", err)
	}
	if o.timeout <= 0 {
		return usagef("promote: --timeout %s: expected a time above 0", o.timeout)
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

func (a *app) promoteStopped(ctx context.Context, s *store.Store, names []string,
	o *promoteOptions) error {
	if o.spec.Active() {
		return usagef("promote: disk %q is stopped: there is no guest to quiesce; leave --quiesce out", names[0])
	}
	done, err := s.Promote(ctx, names, o.tag)
	for _, p := range done {
		a.printf("%s@%s is sealed; %s now has %s", p.Disk, p.Tag, p.Disk, countText(int64(p.Depth),
			"layer"))
	}
	if a.json && done != nil {
		err = errors.Join(err, a.printJSON(done))
	}
	return err
}

// promoteServed promotes the disks in their daemon. If the daemon dies meanwhile, this process
// thaws the guest; if this process dies, the daemon does.
func (a *app) promoteServed(ctx context.Context, s *store.Store, path string, names []string,
	o *promoteOptions) error {
	c, err := client.Dial(ctx, s, path, names)
	if errors.Is(err, store.ErrRefused) {
		return fmt.Errorf("promote: %w", err)
	}
	if err != nil {
		return fmt.Errorf("the process that serves %q does not answer: %w", names[0], err)
	}
	args := daemon.PromoteArgs{Disks: names, Tag: o.tag, Spec: o.spec, Timeout: o.timeout.Seconds()}
	wait, cancel := context.WithTimeout(ctx, 2*o.timeout+time.Minute)
	defer cancel()
	var p daemon.Promoted
	if err := c.Run(wait, "cow-promote", args, &p); err != nil {
		if ctx.Err() != nil {
			// The daemon cancels what is not done yet and thaws the guest.
			return interruptedf(
				"the process that serves the disks may have promoted them already: %s shows their tags", a.command("info", names[0]))
		}
		var answered *control.Error
		if !errors.As(err, &answered) && o.spec.Active() {
			err = errors.Join(
				fmt.Errorf("the daemon ended: the disks are on the old heads or on the new ones, %s shows which: %w", a.command("info", names[0]), err), o.thaw())
		}
		return fmt.Errorf("promote: %w", err)
	}
	for _, d := range p.Disks {
		a.printf("%s@%s is tagged; %s now has %s", d.Disk, p.Tag, d.Disk, countText(int64(d.Depth),
			"layer"))
	}
	if p.HeldTime > 0 {
		a.printf("the guest was quiesced for %.1f ms (quiesce %s)", p.HeldTime, p.Quiesce)
	}
	if a.json {
		return a.printJSON(p)
	}
	return nil
}

// thaw releases a guest that a dead daemon may have left frozen or paused.
func (o *promoteOptions) thaw() error {
	h, err := o.spec.Open(nil, nil)
	if err != nil {
		return err
	}
	defer h.Close()
	ctx, cancel := context.WithTimeout(context.Background(), o.timeout)
	defer cancel()
	return h.ForceThaw(ctx)
}
