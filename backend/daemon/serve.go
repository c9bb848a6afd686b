package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	sd "github.com/coreos/go-systemd/v22/daemon"
	"github.com/dustin/go-humanize"

	"cowblk/backend"
	"cowblk/backend/control"
	"cowblk/backend/sandbox"
	"cowblk/cow"
	"cowblk/cow/store"
)

// Options says what a process serves, and how: Disks of Store, or File.
type Options struct {
	Log     *slog.Logger    // default: slog.Default
	Version control.Version // in the greeting of the control socket

	// Store has the disks. nil: File is served, which has no layers and no control socket.
	Store      *store.Store
	Disks      []string
	File       string // a raw file or block device
	AnyContent bool   // accept a File that looks like another format (--format raw)
	// UserStore has disks that may use File, which must not be written then; nil: the user has
	// none.
	UserStore *store.Store

	Device backend.DeviceOptions // of every disk; Name and Log are set for each
	Cow    cow.Options           // of every disk

	SocketPath  string // of one disk; empty: in the store's run directory
	FD          *int   // inherited socket of one disk, listening or connected; nil: none
	SocketGroup string // may connect to the disks' sockets; empty: only the owner
	// may connect to the control socket and to NBD sockets; empty: only the owner
	ControlGroup string

	// control socket of the process that serves the disks; empty: none does
	TakeOverFrom string
	Sandbox      sandbox.Mode // default: sandbox.Off

	Hooks  HookOptions   // promotions at events of QEMU; zero: none
	Space  Threshold     // COW_SPACE_LOW is emitted below this free space; zero: never
	ENOSPC ENOSPCOptions // requests without space; zero: they fail
}

// OptionError reports an option that cannot be used.
type OptionError struct{ error }

func (e OptionError) Unwrap() error { return e.error }

func optionErrorf(format string, args ...any) error {
	return OptionError{fmt.Errorf(format, args...)}
}

// Serve serves disks until ctx is done, the control command quit arrives, or every disk's
// connection has ended (Options.FD). It notifies systemd. Errors: those of Open, Daemon.Run and
// Daemon.Close.
func Serve(ctx context.Context, o Options) error {
	if !signal.Ignored(syscall.SIGQUIT) {
		// Go's runtime prints every goroutine's stack: the last thing to ask of a server that
		// hangs.
		signal.Reset(syscall.SIGQUIT)
	}
	d, err := Open(ctx, o)
	if err != nil {
		return err
	}
	if d.old != nil {
		d.oldNBD = d.old.confirm()
	}
	if _, err := sd.SdNotify(false, sd.SdNotifyReady); err != nil {
		d.log.Warn("cannot notify systemd of readiness", "err", err)
	}
	err = d.Run(ctx)
	d.log.Info("stopping")
	_, _ = sd.SdNotify(false, sd.SdNotifyStopping)
	return errors.Join(err, d.Close())
}

// Open opens the disks, then the sockets: a front-end that can connect can be served. The caller
// must call Run, which closes the sockets, then Close. After an error nothing is open, and the old
// process of a takeover continues. Errors: OptionError, and those of store.OpenDisk.
func Open(ctx context.Context, o Options) (_ *Daemon, err error) {
	// If the reader of the log ends, log lines are lost but the disks are served.
	signal.Ignore(syscall.SIGPIPE)
	d := newDaemon(o)
	defer func() {
		if err != nil {
			err = d.closeFailed(err)
		}
	}()
	if err := d.openDisks(ctx); err != nil {
		return nil, err
	}
	if err := d.openSockets(); err != nil {
		return nil, err
	}
	for _, e := range d.exports {
		if err := d.offer(e); err != nil {
			return nil, err
		}
	}
	d.storeSockets()
	if err := d.confine(); err != nil {
		return nil, err
	}
	return d, nil
}

// Socket returns the path of the first disk's socket.
func (d *Daemon) Socket() string { return d.exports[0].path }

// Start calls Run with ctx in a goroutine. alive ends when Run returns; stop ends it, waits for
// that, and closes the disks.
func (d *Daemon) Start(ctx context.Context) (alive context.Context, stop func() error) {
	ctx, cancel := context.WithCancel(ctx)
	alive, end := context.WithCancel(context.Background())
	var err error // valid when alive has ended
	go func() {
		defer end()
		err = d.Run(ctx)
	}()
	return alive, func() error {
		cancel()
		<-alive.Done()
		return errors.Join(err, d.Close())
	}
}

// openDisks opens the disks, after the old process of a takeover has detached them.
func (d *Daemon) openDisks(ctx context.Context) (err error) {
	if d.opts.Store == nil {
		return d.openRaw()
	}
	if err := d.checkOpenFiles(); err != nil {
		return err
	}
	if d.opts.TakeOverFrom != "" {
		if d.old, err = d.requestTakeover(ctx); err != nil {
			return err
		}
	}
	if d.old != nil {
		if err := d.old.awaitDetach(ctx, d.log); err != nil {
			return err
		}
	}
	for _, name := range d.opts.Disks {
		opened, err := d.openStored(ctx, name)
		if err != nil {
			return err
		}
		d.exports = append(d.exports, &Export{name: name, opened: opened})
	}
	return nil
}

// openSockets makes or takes over the sockets of the disks and, for disks of a store, one control
// socket. That has the name of the first disk, and each disk's lock records it.
func (d *Daemon) openSockets() error {
	stored, err := d.findSockets()
	if err != nil || d.opts.Store == nil {
		return err
	}
	path, err := d.controlSocket(stored)
	if err != nil {
		return fmt.Errorf("control %w", err)
	}
	for _, e := range d.exports {
		e.serving = store.Serving{PID: os.Getpid(), Control: path, Socket: e.path}
		if err := e.opened.Lock.SetServing(e.serving); err != nil {
			return err
		}
	}
	d.readQuiesceRecords()
	return nil
}

// offer makes the device of an open disk.
func (d *Daemon) offer(e *Export) error {
	o := d.opts.Device
	o.Name, o.Log = e.name, d.log
	dev, err := backend.NewDevice(e.opened.Disk, o)
	if err != nil {
		return err
	}
	e.setDevice(dev, d)
	disk := e.opened.Disk
	d.log.Info("serving", "disk", e.name, "socket", e.path, "size",
		humanize.IBytes(uint64(disk.Size())),
		"layers", disk.Depth(), "read_only", o.ReadOnly || disk.ReadOnly(), "cache", o.Cache)
	return nil
}

// readQuiesceRecords finds the guests that an earlier process may have left frozen or paused.
func (d *Daemon) readQuiesceRecords() {
	for _, e := range d.exports {
		h := QuiescedGuest{Disk: e.name}
		found, err := d.opts.Store.QuiesceRecord(e.name, &h.Spec)
		if err != nil {
			d.log.Error("the record of a quiesced guest cannot be read: the guest may still be frozen or paused", "disk", e.name, "err", err)
		}
		if found {
			d.quiesced.add(h)
		}
	}
}
