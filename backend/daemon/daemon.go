package daemon

import (
	"context"
	"errors"
	"log/slog"
	"sync"

	"cowblk/backend"
	"cowblk/backend/control"
	"cowblk/cow"
)

// Daemon is a process that serves one or more exports and answers commands on control sockets.
type Daemon struct {
	log       *slog.Logger
	control   *control.Server
	names     Names
	store     string // Options.Store
	owner     DiskOwner
	quiesced  quiescedGuests
	hooks     *hooks
	nbd       *nbdExports
	inherited *InheritedNBD
	space     *spaceMonitor
	checksums *checksummer
	procs     backend.MaxProcs
	stop      context.CancelFunc // set by Run
	serving   context.Context    // set by Run: done when the exports have ended; nil before

	promoting  sync.Mutex     // one promotion at a time
	setting    sync.Mutex     // one cow-set at a time
	background sync.WaitGroup // goroutines that Run waits for

	mu      sync.Mutex
	exports []*Export
}

// Options describes a daemon. The zero value has no control socket.
type Options struct {
	Log      *slog.Logger    // default: slog.Default
	Control  *control.Server // nil: no control socket; Run closes it
	Store    string          // directory of the disks' store, for query-cow-disks; empty: none
	Names    Names           // nil: the disks have no layers to promote
	Owner    DiskOwner       // nil: another process cannot take the disks over
	Quiesced []QuiescedGuest // guests that an earlier process may have left frozen or paused
	Hooks    HookOptions     // promotions at events of QEMU; zero: none
	NBD      NBDOptions      // reading of tags over NBD; zero: none
	NBDOf    *InheritedNBD   // NBD server of the old process; nil: none
	Space    Threshold       // COW_SPACE_LOW is emitted below this free space; zero: never
	ENOSPC   ENOSPCOptions   // requests without space; zero: they fail
}

// New returns a daemon without exports.
func New(o Options) *Daemon {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	d := &Daemon{log: o.Log, control: o.Control, store: o.Store, names: o.Names, owner: o.Owner}
	for _, h := range o.Quiesced {
		d.quiesced.add(h)
	}
	d.hooks = newHooks(d, o.Hooks)
	d.space = newSpaceMonitor(d, o.Space, o.ENOSPC)
	d.checksums = newChecksummer(d)
	d.nbd, d.inherited = newNBDExports(o.NBD, o.Log, d.serves), o.NBDOf
	if d.control != nil {
		d.registerCommands(d.control)
		d.nbd.register(d.control)
	}
	return d
}

// Add adds an export. It must be called before Run.
func (d *Daemon) Add(e *Export) {
	_, policy := d.space.settings()
	d.mu.Lock()
	defer d.mu.Unlock()
	e.emit = d.emit
	e.dev.Observe(backend.Observer{
		IOError: func(event backend.IOErrorEvent) { d.emit("COW_IO_ERROR", event) },
		Parked:  func(io *cow.Request) { d.space.onPark(e.dev, io) },
		Procs:   &d.procs,
	})
	e.dev.SetParking(policy == ENOSPCStop)
	d.exports = append(d.exports, e)
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

	aside, end := context.WithCancel(context.WithoutCancel(ctx)) // for what lives as long as the exports
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
	d.background.Go(func() { d.nbd.inherit(aside, d.inherited) })
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
