package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"cowblk/backend"
	"cowblk/backend/client"
	"cowblk/backend/control"
	"cowblk/backend/daemon"
	"cowblk/backend/sandbox"
	"cowblk/cow/imagefile"
)

// serveFlags holds the options of "cowblk serve". QEMU's "Backend program conventions" for
// vhost-user-blk (docs/interop/vhost-user.rst) require --socket-path, --fd, --print-capabilities,
// --blk-file and --read-only.
type serveFlags struct {
	dataFlags
	hooks        hookFlags
	fd           int
	capabilities bool
	blkFormat    string // "raw": accept any content of the file
	takeover     bool
}

func newServe(a *app) *cobra.Command {
	f := serveFlags{}
	cmd := &cobra.Command{
		Use:   "serve NAME... | --blk-file FILE",
		Short: "Serve disks to QEMU over vhost-user-blk, in the foreground",
		Long: `Serve disks to QEMU over vhost-user-blk, with one socket for each disk, until SIGTERM or Ctrl-C. Then
requests in flight complete and the disks are closed; another signal, a second later or after that, ends
the process at once. The process can serve several disks.

A socket is made when its disk is ready, in the store's run directory ("cowblk info NAME" shows the
path), with mode 0600. A QEMU started by libvirt runs as another user: give that user's group with
--socket-group. That group can open the disks' sockets only. The control socket, and NBD sockets that
the process makes, belong to the owner and, with --control-group, to a group of operators. Operators may
promote, export served disks on UNIX sockets in the run directory, change settings and end the process;
only the owner and root may use addresses that the process was not started with. Each change is logged
with user and process. Sockets from systemd (socket activation) are used if there are any, selected by
FileDescriptorName= or, for one disk, with any name; systemd is notified of readiness.

QEMU's conventions for back-end programs require the options --socket-path, --fd, --print-capabilities,
--blk-file and --read-only. --blk-file serves a raw file or block device without a store and without
layers. A file of another format is refused unless --format raw is given; so is one that another process
has open, such as QEMU or cowblk. To be written, the file must not be a store's, or used by a disk of
the user's store or, as a mounted device, by the system.

With --qmp and --promote-on, events of the guest's QEMU promote all disks of the process together, for
example to keep the changes of each boot, or the state after a panic, in a separate layer. The tag is
the event and its time, as guest-panicked-20061127T120000Z. A burst of events makes one tag, at the first.

When its disks are open and its sockets made, the process gives up (--sandbox) what serving does not
need: it can reach only the store's files, executes nothing and gains no privileges. A socket outside
the run directory remains when the process ends; the next process replaces it.

On a full file system or quota, writes that find no space fail in the guest. With --on-enospc stop they
wait instead while the guest is paused through --qmp or --libvirt, until there is space or "cowblk
resume". Other reads and writes continue. A process that must end and finds no space for a disk's map,
not even in the store's reserve, ends after 10 seconds without it: exit code 1. Nothing is lost unless a
power cut, a reboot or an unmount precedes the next process.

Disks of a store on a read-only file system (remounted after an error, a snapshot) are served with
--read-only. A socket for which the run directory has no space is made in another directory, which the
log and "cowblk info NAME" show.

A driver that negotiates neither VIRTIO_BLK_F_FLUSH nor VIRTIO_BLK_F_CONFIG_WCE, such as firmware, has no
write cache: each of its writes is durable when it completes (virtio 1.2, 5.2.6.2). For initiators that
never flush and do not expect this, such as SPDK's, there is --writeback-without-flush. With any driver,
writes are flushed after --flush-interval at the latest.

With --takeover the disks are taken over from the process that serves them. That process completes its
requests and hands its sockets, control socket and NBD server to this one, which continues after some
milliseconds; the guest's QEMU reconnects. If this process cannot serve the disks, the other one
continues. If no process serves them, --takeover has no effect. Options are not taken over: repeat those
that should stay.`,
		Example: `  cowblk serve vm1
  cowblk serve vm1 vm2 vm3
  cowblk serve vm1 --socket-path /run/vm1.sock --socket-group kvm
  cowblk serve vm1 --cache none
  cowblk serve scratch --writeback-without-flush --flush-interval 5s
  cowblk serve vm1 --qmp unix:/run/vm1.qmp --promote-on SHUTDOWN,RESET,GUEST_PANICKED --keep 20
  cowblk serve vm1 vm2 --takeover
  cowblk serve --blk-file disk.raw --socket-path /run/disk.sock`,
		ValidArgsFunction: a.complete(-1, diskNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			if f.capabilities {
				return a.printCapabilities()
			}
			if err := f.check(args); err != nil {
				return err
			}
			return a.serve(cmd.Context(), &f)
		},
	}
	fl := cmd.Flags()
	fl.StringVar(&f.SocketPath, "socket-path", "", "make the socket at `PATH` (one disk only)")
	fl.IntVar(&f.fd, "fd", -1,
		"use the inherited socket `FD`: a listening one, or a connection, whose end ends the process")
	fl.BoolVar(&f.capabilities, "print-capabilities", false,
		"print the capabilities of this back-end as JSON, and exit")
	fl.StringVar(&f.File, "blk-file", "",
		"serve the raw `FILE` or block device instead of disks of the store")
	fl.StringVar(&f.blkFormat, "format", "", "`FORMAT` of --blk-file: raw accepts any content")
	fl.BoolVar(&f.Device.ReadOnly, "read-only", false, "do not let the guest write")
	fl.IntVar(&f.Device.Queues, "queues", backend.DefaultQueues,
		"maximum number of virtqueues of a guest, up to 256")
	f.register(cmd)
	fl.StringVar(&f.Device.Serial, "serial", "",
		"serial number that the guest sees, at most 20 bytes (default: the disk's name)")
	f.hooks.register(cmd)
	fl.TextVar(&f.Sandbox, "sandbox", sandbox.On,
		"confine the process to the store's files once its disks are open: on, as far as\nthis kernel can; require, or fail; off")
	_ = cmd.RegisterFlagCompletionFunc("sandbox", cobra.FixedCompletions([]cobra.Completion{"off",
		"on", "require"}, cobra.ShellCompDirectiveNoFileComp))
	fl.BoolVar(&f.takeover, "takeover", false,
		"take the disks over from the process that serves them now, all of its disks")
	fl.StringVar(&f.SocketGroup, "socket-group", "",
		"let `GROUP`, QEMU's, connect to the disks' sockets too (mode 0660)")
	fl.StringVar(&f.ControlGroup, "control-group", "",
		"let `GROUP`, operators, connect to the control socket too, and to NBD sockets that the\nprocess makes on command")
	return cmd
}

// maxSerial bounds a serial number, in bytes (virtio 1.2, 5.2.6: VIRTIO_BLK_T_GET_ID).
const maxSerial = 20

// check validates the command line and completes Options, but for the store.
func (f *serveFlags) check(args []string) error {
	switch {
	case f.File != "" && len(args) > 0:
		return usagef("serve: --blk-file serves a file and takes no disk names, found %q", args[0])
	case f.File == "" && len(args) == 0:
		return usagef("serve: NAME is missing: the disk to serve (\"cowblk list\" shows them)")
	case f.File != "" && f.SocketPath == "" && f.fd < 0 && os.Getenv("LISTEN_FDS") == "":
		return usagef("serve: --blk-file needs --socket-path or --fd")
	case f.blkFormat != "" && f.File == "":
		return usagef("serve: --format is for --blk-file")
	case f.blkFormat != "" && f.blkFormat != imagefile.Raw:
		return usagef("serve: --format %q: expected raw", f.blkFormat)
	case f.SocketPath != "" && f.fd >= 0:
		return usagef("serve: --socket-path and --fd exclude each other")
	case (f.SocketPath != "" || f.fd >= 0) && len(args) > 1:
		return usagef("serve: --socket-path and --fd are for one disk, found %d names", len(args))
	case f.takeover && (f.File != "" || f.fd >= 0 || f.SocketPath != ""):
		return usagef("serve: --takeover keeps the sockets of the process that serves the disks: omit --socket-path, --fd and --blk-file")
	case f.Device.Serial != "" && len(args) > 1:
		return usagef("serve: --serial is for one disk, found %d names", len(args))
	case len(f.Device.Serial) > maxSerial:
		return usagef("serve: --serial %q: expected at most %d bytes, found %d", f.Device.Serial,
			maxSerial, len(f.Device.Serial))
	case f.Device.Queues < 1 || f.Device.Queues > 256:
		return usagef("serve: --queues %d: expected 1 to 256", f.Device.Queues)
	}
	if err := checkSocketPath(f.SocketPath); err != nil {
		return err
	}
	for _, g := range []struct{ option, name string }{{"socket-group", f.SocketGroup},
		{"control-group", f.ControlGroup}} {
		if err := control.CheckGroup(g.name); err != nil {
			return usagef("serve: --%s: %w", g.option, err)
		}
	}
	if err := f.dataFlags.check("serve"); err != nil {
		return err
	}
	var err error
	if f.Hooks, f.Space, err = f.hooks.options(); err != nil {
		return err
	}
	if f.ENOSPC, err = f.hooks.enospcOptions(); err != nil {
		return err
	}
	if f.File != "" && (f.hooks.onENOSPC != "" || f.hooks.libvirt != "") {
		return usagef("serve: --on-enospc is for disks of the store, which have a control socket")
	}
	if f.File != "" && (f.Cow.LoseUnflushed || f.keepUnflushed || f.dropUnflushed) {
		return usagef("serve: --lose-unflushed, --keep-unflushed and --drop-unflushed are for disks of the store: a raw file has no map")
	}
	if f.File != "" && f.Cow.ForceShare {
		return usagef("serve: --force-share is for disks on a base in place: a raw file is locked for this process alone")
	}
	if f.File != "" && f.ControlGroup != "" {
		return usagef("serve: --control-group is for disks of the store, which have a control socket")
	}
	if f.File != "" && len(f.hooks.events) > 0 {
		return usagef("serve: --promote-on is for disks of the store: a raw file has no layers to promote")
	}
	seen := map[string]bool{}
	for _, n := range args {
		if seen[n] {
			return usagef("serve: disk %q is named twice", n)
		}
		seen[n] = true
	}
	f.Disks, f.AnyContent = args, f.blkFormat == imagefile.Raw
	if f.fd >= 0 {
		f.FD = &f.fd
	}
	return nil
}

// checkSocketPath refuses a --socket-path whose absolute form does not fit a socket address.
func checkSocketPath(path string) error {
	if path == "" {
		return nil
	}
	path, err := filepath.Abs(path)
	if err == nil {
		err = control.CheckPath(path)
	}
	if err != nil {
		return usagef("--socket-path: %w", err)
	}
	return nil
}

// printCapabilities implements --print-capabilities, in the schema of QEMU's
// docs/interop/vhost-user.json.
func (a *app) printCapabilities() error {
	return a.printJSON(struct {
		Type     string   `json:"type"`
		Features []string `json:"features"`
	}{"block", []string{"read-only", "blk-file"}})
}

// serve serves what the command line names until ctx is done.
func (a *app) serve(ctx context.Context, f *serveFlags) (err error) {
	o := f.Options
	o.Log, o.Version = a.serveLogger(), controlVersion()
	if o.File != "" {
		o.UserStore, _ = a.openStore() // nil: this user has none
	} else if o.Store, err = a.openTrusted(); err != nil {
		return err
	}
	if f.takeover {
		if o.TakeOverFrom, err = client.OldProcess(ctx, o.Store, o.Disks); err != nil {
			return err
		}
	}
	return optionUsage(daemon.Serve(ctx, o))
}

// optionUsage makes a usage error of an error in an option.
func optionUsage(err error) error {
	var bad daemon.OptionError
	if errors.As(err, &bad) {
		return usageError{err}
	}
	return err
}

// controlVersion is the version in the greeting of the control socket.
func controlVersion() control.Version {
	v := control.Version{Package: "cowblk " + buildVersion().Version}
	_, _ = fmt.Sscanf(strings.TrimPrefix(buildVersion().Version, "v"), "%d.%d.%d", &v.Major,
		&v.Minor, &v.Micro)
	return v
}

// serveLogger logs on standard error at level Info, because a daemon reports events as well as
// errors.
func (a *app) serveLogger() *slog.Logger {
	level := slog.LevelInfo
	if a.debug {
		level = slog.LevelDebug
	}
	return a.newLogger(level)
}
