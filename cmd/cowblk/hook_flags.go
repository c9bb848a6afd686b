package main

import (
	"time"

	"github.com/spf13/cobra"

	"cowblk/backend/daemon"
	"cowblk/backend/qmp"
)

// hookFlags holds the options of "cowblk serve" for QEMU's events, free space and ENOSPC.
type hookFlags struct {
	qmp      string
	events   []string
	maxTags  int
	interval time.Duration
	spaceLow string
	onENOSPC string
	libvirt  string
	domain   string
}

func (f *hookFlags) register(cmd *cobra.Command) {
	fl := cmd.Flags()
	fl.StringVar(&f.qmp, "qmp", "",
		"`ADDRESS` of the monitor of the guest's QEMU: unix:PATH; no other program can use it then")
	fl.StringSliceVar(&f.events, "promote-on", nil,
		"promote all disks when QEMU reports one of these `EVENTS`: SHUTDOWN,RESET,GUEST_PANICKED,STOP,...")
	fl.IntVar(&f.maxTags, "keep", 0,
		"make no more tags for events once a disk has `N` of them (0: any number)")
	fl.DurationVar(&f.interval, "promote-min-interval", daemon.DefaultHookInterval,
		"an event sooner after another one makes no tag")
	fl.StringVar(&f.spaceLow, "space-low", daemon.DefaultSpaceLow,
		"warn when less `SPACE` is free where the heads are: 5%, 10G, or off")
	fl.StringVar(&f.onENOSPC, "on-enospc", "",
		"writes that find no space fail (report), or wait for space while the guest is\npaused (stop; default with --qmp or --libvirt)")
	fl.StringVar(&f.libvirt, "libvirt", "",
		"`URI` of the libvirt that runs the guest, to pause it through: qemu:///system")
	fl.StringVar(&f.domain, "domain", "", "`NAME` of the guest in libvirt")
	_ = cmd.RegisterFlagCompletionFunc("on-enospc",
		cobra.FixedCompletions([]cobra.Completion{"stop", "report"},
			cobra.ShellCompDirectiveNoFileComp))
	_ = cmd.RegisterFlagCompletionFunc("promote-on", cobra.FixedCompletions(
		[]cobra.Completion{"SHUTDOWN", "RESET", "GUEST_PANICKED", "STOP", "SUSPEND", "WATCHDOG"},
		cobra.ShellCompDirectiveNoFileComp))
}

// options validates the flags. The zero value of f is valid.
func (f *hookFlags) options() (o daemon.HookOptions, space daemon.Threshold, err error) {
	switch {
	case len(f.events) > 0 && f.qmp == "":
		return o, space, usagef(
			"serve: --promote-on needs --qmp, the monitor that reports the events")
	case len(f.events) == 0 && f.maxTags > 0:
		return o, space, usagef("serve: --keep is about the tags of events: it needs --promote-on")
	case len(f.events) == 0 && f.interval > 0 && f.interval != daemon.DefaultHookInterval:
		return o, space, usagef(
			"serve: --promote-min-interval is about events: it needs --promote-on")
	case f.maxTags < 0:
		return o, space, usagef("serve: --keep %d: expected a number of tags, 0 for any", f.maxTags)
	case f.interval < 0:
		return o, space, usagef("serve: --promote-min-interval %s: expected a time above 0",
			f.interval)
	}
	if f.qmp != "" {
		a, err := qmp.ParseAddress(f.qmp)
		if err != nil {
			return o, space, usagef("serve: --qmp: %w", err)
		}
		o.QMP = &a
	}
	if o.Events, err = daemon.HookEvents(f.events); err != nil {
		return o, space, usagef("serve: --promote-on: %w", err)
	}
	o.Keep, o.Interval = f.maxTags, f.interval
	if f.spaceLow != "" {
		if space, err = daemon.ParseThreshold(f.spaceLow); err != nil {
			return o, space, usagef("serve: --space-low: %w", err)
		}
	}
	return o, space, nil
}

// enospcOptions validates the flags about full file systems. The zero value of f is valid.
func (f *hookFlags) enospcOptions() (o daemon.ENOSPCOptions, err error) {
	if f.libvirt != "" || f.domain != "" {
		o.Guest = qmp.Spec{Mode: qmp.QuiescePause, Libvirt: f.libvirt, Domain: f.domain}
		if f.libvirt == "" {
			return o, usagef("serve: --domain needs --libvirt, the URI of libvirt")
		}
		h, err := o.Guest.Open(nil, nil)
		if err != nil {
			return o, usagef("serve: --libvirt: %w", err)
		}
		h.Close()
	} else {
		o.Guest.QMP = absoluteAddress(f.qmp)
	}
	switch {
	case f.onENOSPC != "":
		o.Given = f.onENOSPC
		if o.Policy, err = daemon.ParseENOSPCPolicy(f.onENOSPC); err != nil {
			return o, usagef("serve: --on-enospc %w", err)
		}
	case f.qmp != "" || f.libvirt != "":
		o.Policy = daemon.ENOSPCStop
	}
	return o, nil
}
