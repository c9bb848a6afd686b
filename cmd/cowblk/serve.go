package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"

	"cowblk/backend"
	"cowblk/backend/control"
	"cowblk/cow/store"
)

// serveFlags are the options of "cowblk serve". Those in the first group are of QEMU's "Backend program conventions"
// for vhost-user-blk (docs/interop/vhost-user.rst).
type serveFlags struct {
	socketPath   string
	fd           int
	capabilities bool
	blkFile      string
	blkFormat    string // "raw": take blkFile as it is
	readOnly     bool

	queues int
	data   dataFlags
	serial string
	group  string
	hooks  hookFlags

	controlGroup string

	takeover bool

	sandbox sandboxFlags
}

func newServe(a *app) *cobra.Command {
	f := serveFlags{fd: -1}
	cmd := &cobra.Command{
		Use:   "serve NAME... | --blk-file FILE",
		Short: "Serve disks to QEMU over vhost-user-blk, in the foreground",
		Long: `Serve disks to QEMU over vhost-user-blk, one socket a disk, until SIGTERM or Ctrl-C: then every
request under way is completed and the disks are closed; another signal, a second later or after that, ends the
process at once. Several disks share the process.

A socket is made when its disk is open and ready, in the store's run directory ("cowblk info NAME"
shows where), with mode 0600. QEMU started by libvirt runs as another user: give that user's group
with --socket-group. It opens those sockets and no others: the control socket, and NBD sockets that the
process makes, are the owner's and, with --control-group, a group's of operators. Its members may
promote, export what the process serves on UNIX sockets in the run directory, change settings and end
the process; addresses that it has not been started with are for the owner and root. Who changes
something is logged, with user and process. Sockets from systemd (socket activation) are used instead when there are any,
by FileDescriptorName= or, for one disk, whatever its name; readiness is told to systemd.

The options --socket-path, --fd, --print-capabilities, --blk-file and --read-only are those that QEMU's
conventions for back-end programs demand. --blk-file serves a raw file or block device as it is,
without a store and without layers. A file of another format is refused unless --format raw; one that
somebody else has open, QEMU or another cowblk, too.

With --qmp and --promote-on, events of the guest's QEMU promote all disks of the process together: to
keep the changes of each boot, or what a panic has left, in a layer of its own. The tag is the event
and its time, as guest-panicked-20061127T120000Z. Events that come in a burst make one tag, the first.

With its disks open and its sockets made, the process gives up (--sandbox) what serving does not need:
it then reaches the store's files and no others, executes nothing and gains no privileges. A socket
outside of the run directory stays there when the process has ended; the next one replaces it.

A full file system or quota: the writes that find no space fail in the guest or, with --on-enospc pause,
wait, while the guest is paused through --qmp or --libvirt, and go on by themselves when there is space
again, or by "cowblk resume". Reads, and writes that need no space, go on. A process that is to end and
finds no space for a disk's map, not even in the store's reserve, ends after 10 seconds without: exit
code 1. Nothing is lost, unless a power cut, a reboot or an unmount comes before the next process.

Disks of a store that can only be read (a file system remounted after an error, a snapshot) are served
with --read-only. A socket that has no room in the run directory is made in another one, and the log
says where; so does "cowblk info NAME".

A driver that negotiates neither VIRTIO_BLK_F_FLUSH nor VIRTIO_BLK_F_CONFIG_WCE, as firmware does, has no
write cache: each of its writes is durable when it completes (virtio 1.2, 5.2.6.2). For initiators that
never flush and do not expect that, SPDK's for one, there is --writeback-without-flush. Whatever the
driver does, what it has written is flushed after --flush-interval at the latest.

With --takeover the disks are taken over from the process that serves them: it completes what is
under way and hands its sockets, control socket and NBD server to this one, which goes on in some
milliseconds; a guest's QEMU reconnects by itself. If this process cannot serve them the other one
goes on. If nobody serves the disks, --takeover makes no difference. The options are this process's:
give those again that are to stay.`,
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
			return a.serve(cmd.Context(), args, &f)
		},
	}
	fl := cmd.Flags()
	fl.StringVar(&f.socketPath, "socket-path", "", "make the socket at `PATH` (one disk only)")
	fl.IntVar(&f.fd, "fd", -1, "use the inherited socket `FD`: one that listens, or one that is connected, whose end ends the process")
	fl.BoolVar(&f.capabilities, "print-capabilities", false, "print what this back-end can do as JSON, and exit")
	fl.StringVar(&f.blkFile, "blk-file", "", "serve the raw `FILE` or block device instead of disks of the store")
	fl.StringVar(&f.blkFormat, "format", "", "`FORMAT` of --blk-file: raw takes it as it is, also if it looks like something else")
	fl.BoolVar(&f.readOnly, "read-only", false, "do not let the guest write")
	fl.IntVar(&f.queues, "queues", backend.DefaultQueues, "most virtqueues a guest can use, up to 256")
	f.data.register(cmd)
	fl.StringVar(&f.serial, "serial", "", "serial number that the guest sees, at most 20 bytes (default: the disk's name)")
	f.hooks.register(cmd)
	f.sandbox.register(cmd)
	fl.BoolVar(&f.takeover, "takeover", false, "take the disks over from the process that serves them now, all of its disks")
	fl.StringVar(&f.group, "socket-group", "", "let `GROUP`, QEMU's, connect to the disks' sockets too (mode 0660)")
	fl.StringVar(&f.controlGroup, "control-group", "", "let `GROUP`, operators, connect to the control socket too, and to NBD sockets that the\nprocess is told to make")
	return cmd
}

// maxSerial is the length limit of a serial number, in bytes (virtio 1.2, 5.2.6: VIRTIO_BLK_T_GET_ID).
const maxSerial = 20

func (f *serveFlags) check(args []string) error {
	switch {
	case f.blkFile != "" && len(args) > 0:
		return usagef("serve: --blk-file serves a file and takes no disk names, found %q", args[0])
	case f.blkFile == "" && len(args) == 0:
		return usagef("serve: NAME is missing: the disk to serve (\"cowblk list\" shows them)")
	case f.blkFile != "" && f.socketPath == "" && f.fd < 0 && os.Getenv("LISTEN_FDS") == "":
		return usagef("serve: --blk-file needs --socket-path or --fd")
	case f.blkFormat != "" && f.blkFile == "":
		return usagef("serve: --format is for --blk-file")
	case f.blkFormat != "" && f.blkFormat != store.FormatRaw:
		return usagef("serve: --format %q: expected raw", f.blkFormat)
	case f.socketPath != "" && f.fd >= 0:
		return usagef("serve: --socket-path and --fd exclude each other")
	case (f.socketPath != "" || f.fd >= 0) && len(args) > 1:
		return usagef("serve: --socket-path and --fd are for one disk, found %d names", len(args))
	case f.takeover && (f.blkFile != "" || f.fd >= 0 || f.socketPath != ""):
		return usagef("serve: --takeover keeps the sockets of the process that serves the disks: leave --socket-path, --fd and --blk-file out")
	case f.serial != "" && len(args) > 1:
		return usagef("serve: --serial is for one disk, found %d names", len(args))
	case len(f.serial) > maxSerial:
		return usagef("serve: --serial %q: expected at most %d bytes, found %d", f.serial, maxSerial, len(f.serial))
	case f.queues < 1 || f.queues > 256:
		return usagef("serve: --queues %d: expected 1 to 256", f.queues)
	}
	if err := checkSocketPath(f.socketPath); err != nil {
		return err
	}
	for _, g := range []struct{ option, name string }{{"socket-group", f.group}, {"control-group", f.controlGroup}} {
		if err := control.CheckGroup(g.name); err != nil {
			return usagef("serve: --%s: %w", g.option, err)
		}
	}
	if err := f.data.check("serve"); err != nil {
		return err
	}
	if _, _, err := f.hooks.options(); err != nil {
		return err
	}
	if _, err := f.hooks.full(); err != nil {
		return err
	}
	if f.blkFile != "" && (f.hooks.onENOSPC != "" || f.hooks.libvirt != "") {
		return usagef("serve: --on-enospc is for disks of the store, which have a control socket")
	}
	if f.blkFile != "" && (f.data.loseUnflushed || f.data.keepUnflushed || f.data.dropUnflushed) {
		return usagef("serve: --lose-unflushed, --keep-unflushed and --drop-unflushed are for disks of the store: a raw file has no map")
	}
	if f.blkFile != "" && f.data.forceShare {
		return usagef("serve: --force-share is for disks on a base in place: a file served raw is this process's alone")
	}
	if f.blkFile != "" && f.controlGroup != "" {
		return usagef("serve: --control-group is for disks of the store, which have a control socket")
	}
	if f.blkFile != "" && len(f.hooks.events) > 0 {
		return usagef("serve: --promote-on is for disks of the store: a raw file has no layers to promote")
	}
	seen := map[string]bool{}
	for _, n := range args {
		if seen[n] {
			return usagef("serve: disk %q is named twice", n)
		}
		seen[n] = true
	}
	return nil
}

// printCapabilities answers --print-capabilities, in the schema of QEMU's docs/interop/vhost-user.json.
func (a *app) printCapabilities() error {
	return a.printJSON(struct {
		Type     string   `json:"type"`
		Features []string `json:"features"`
	}{"block", []string{"read-only", "blk-file"}})
}

// serve opens what the command line names and serves it until ctx is done.
func (a *app) serve(ctx context.Context, names []string, f *serveFlags) (err error) {
	quitDumps()
	log := a.serveLogger()
	d, err := a.openServing(ctx, names, f, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.close()) }()
	if d.before != nil {
		d.before.serving()
	}
	if _, err := daemon.SdNotify(false, daemon.SdNotifyReady); err != nil {
		log.Warn("systemd was not told that the sockets are ready", "err", err)
	}
	err = d.daemon.Run(ctx)
	log.Info("stopping")
	_, _ = daemon.SdNotify(false, daemon.SdNotifyStopping)
	return err
}

// controlVersion is what the control socket's greeting says.
func controlVersion() control.Version {
	v := control.Version{Package: "cowblk " + buildVersion().Version}
	_, _ = fmt.Sscanf(strings.TrimPrefix(buildVersion().Version, "v"), "%d.%d.%d", &v.Major, &v.Minor, &v.Micro)
	return v
}

// serveLogger writes to standard error; a daemon says what happens, not only what goes wrong.
func (a *app) serveLogger() *slog.Logger {
	level := slog.LevelInfo
	if a.debug {
		level = slog.LevelDebug
	}
	return a.loggerFrom(level)
}
