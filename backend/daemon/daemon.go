package daemon

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"sync"

	"cowblk/backend"
	"cowblk/backend/control"
	"cowblk/backend/takeover"
	"cowblk/cow/store"
)

// Daemon is a process that serves one or more disks and answers commands on control sockets.
type Daemon struct {
	opts      Options
	log       *slog.Logger
	control   *control.Server // nil: none
	manifests *manifests      // nil: a raw file is served
	quiesced  quiescedGuests
	hooks     *hooks
	nbd       *nbdExports
	space     *spaceMonitor
	checksums *checksummer
	procs     backend.MaxProcs
	stop      context.CancelFunc // set by Run
	serving   context.Context    // set by Run: done when the exports have ended; nil before

	old    *oldProcess        // the old process of a takeover; nil: none
	oldNBD []takeover.Message // the sockets of its NBD server

	promoting  sync.Mutex     // one promotion at a time
	setting    sync.Mutex     // one cow-set at a time
	background sync.WaitGroup // goroutines that Run waits for

	mu      sync.Mutex
	exports []*Export
}

// newDaemon returns a daemon without disks and sockets.
func newDaemon(o Options) *Daemon {
	d := &Daemon{opts: o, log: cmp.Or(o.Log, slog.Default())}
	d.opts.Cow.Log = d.log
	d.hooks = newHooks(d, o.Hooks)
	d.space = newSpaceMonitor(d, o.Space, o.ENOSPC)
	d.checksums = newChecksummer(d)
	d.nbd = newNBDExports(d)
	if o.Store != nil {
		d.manifests = &manifests{store: o.Store, byDisk: map[string]*store.Manifest{}}
		d.control = control.NewServer(control.Options{Log: d.log, Version: o.Version,
			Group: o.ControlGroup, GroupMay: groupMay})
		d.registerCommands(d.control)
		d.nbd.register(d.control)
	}
	return d
}

// Run serves every export until ctx is done, the control command quit arrives, or every export has
// ended (--fd: its front-end has left). The first export that fails ends the others.
func (d *Daemon) Run(ctx context.Context) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	d.mu.Lock()
	d.stop = stop
	exports := d.exports
	d.mu.Unlock()

	// for what lives as long as the exports
	aside, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	d.mu.Lock()
	d.serving = aside
	d.mu.Unlock()
	d.hooks.start()
	defer d.hooks.stop() // last: a promotion may need the hooks until it ends
	if d.control != nil {
		d.background.Go(func() { d.control.Serve() })
	}
	d.background.Go(func() { d.hooks.run(aside) })
	d.background.Go(func() { d.space.run(aside) })
	d.background.Go(func() { d.checksums.run(aside) })
	if d.old != nil {
		d.background.Go(func() { d.nbd.takeOver(aside, d.oldNBD, d.old.offer.Exports) })
	}
	d.thawLeftovers(ctx)
	errs := make([]error, len(exports))
	var wg sync.WaitGroup
	for i, e := range exports {
		wg.Go(func() {
			if errs[i] = e.Run(ctx); errs[i] != nil {
				stop()
			}
		})
	}
	wg.Wait()
	end()
	if d.control != nil {
		errs = append(errs, d.control.Close()) // after this no command starts a promotion
	}
	errs = append(errs, d.nbd.stop(true))
	d.background.Wait()
	return errors.Join(errs...)
}

// emit sends an event to every client of the control sockets.
func (d *Daemon) emit(event string, data any) {
	if d.control != nil {
		d.control.Emit(event, data)
	}
}

// quit ends Run, as SIGTERM does.
func (d *Daemon) quit() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.stop != nil {
		d.stop()
	}
}
