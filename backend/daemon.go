package backend

import (
	"context"
	"errors"
	"log/slog"
	"sync"

	"cowblk/backend/control"
)

// Daemon is a process that serves one or more exports, and answers for them on a
// control socket.
type Daemon struct {
	log       *slog.Logger
	control   *control.Server
	store     string // DaemonOptions.Store
	names     Names
	keeper    Keeper
	held      heldGuests
	hooks     *hooks
	readers   *readers
	inherited *InheritedNBD
	space     *space
	shortages *shortages
	sums      *sums
	cpus      processors
	stop      context.CancelFunc // set by Run
	serving   context.Context    // set by Run: done when the exports have ended; nil before

	promoting  sync.Mutex     // one promotion at a time
	background sync.WaitGroup // goroutines that Run waits for

	mu      sync.Mutex
	exports []*Export
}

// DaemonOptions describes a daemon; the zero value serves no control socket.
type DaemonOptions struct {
	Log     *slog.Logger    // default: slog.Default
	Control *control.Server // nil: no control socket; Run closes it
	Store   string          // directory of the disks' store, which query-cow-disks tells if it is asked to; empty: none
	Names   Names           // nil: the disks have no layers to promote
	Keeper  Keeper          // nil: the disks cannot be handed over to another process
	Held    []Held          // guests that a dead process may have left frozen or paused
	Hooks   HookOptions     // promotions that QEMU's events trigger; zero: none
	NBD     NBDOptions      // tags offered for reading; zero: none
	NBDOf   *InheritedNBD   // the server of the process before; nil: none
	Space   Threshold       // free space below which COW_SPACE_LOW warns; zero: never
	Full    FullOptions     // requests that find no space; zero: they fail
}

// NewDaemon makes a daemon without exports.
func NewDaemon(o DaemonOptions) *Daemon {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	d := &Daemon{log: o.Log, control: o.Control, store: o.Store, names: o.Names, keeper: o.Keeper}
	for _, h := range o.Held {
		d.held.add(h)
	}
	d.hooks = newHooks(d, o.Hooks)
	d.space = newSpace(d, o.Space)
	d.shortages = newShortages(d, o.Full)
	d.sums = newSums(d)
	d.readers, d.inherited = newReaders(o.NBD, o.Log, d.serves), o.NBDOf
	if d.control != nil {
		d.registerCommands(d.control)
		d.readers.register(d.control)
	}
	return d
}

// Add adds an export; to be called before Run.
func (d *Daemon) Add(e *Export) {
	d.mu.Lock()
	defer d.mu.Unlock()
	e.emit = d.emit
	e.dev.emit = d.emit
	e.dev.cpus = &d.cpus
	d.shortages.add(e)
	d.exports = append(d.exports, e)
}

// Run serves every export until ctx is done, the control command quit arrives,
// or every export has ended by itself (--fd: its front-end has gone). The first
// export that fails ends the others.
func (d *Daemon) Run(ctx context.Context) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	d.mu.Lock()
	d.stop = stop
	exports := d.exports
	d.mu.Unlock()

	aside, end := context.WithCancel(context.WithoutCancel(ctx)) // of what goes on as long as the exports do
	defer end()
	d.mu.Lock()
	d.serving = aside
	d.mu.Unlock()
	d.hooks.start()
	defer d.hooks.stop() // last: a promotion may need it until it ends
	if d.control != nil {
		d.background.Go(func() { d.control.Serve() })
	}
	d.background.Go(func() { d.hooks.run(aside) })
	d.background.Go(func() { d.space.run(aside) })
	d.background.Go(func() { d.shortages.run(aside) })
	d.background.Go(func() { d.sums.run(aside) })
	d.background.Go(func() { d.readers.inherit(aside, d.inherited) })
	d.releaseHeld(ctx)
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
	errs = append(errs, d.readers.stop(true))
	d.background.Wait()
	return errors.Join(errs...)
}

// emit sends an event to every client of the control socket.
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
