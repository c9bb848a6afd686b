package daemon

import (
	"context"
	"errors"
	"fmt"
	"time"

	"cowblk/backend/qmp"
)

// PlugArgs are the arguments of cow-attach and, without bus and queues, of cow-detach. The daemon
// executes them, not its client, because QEMU serves one client per monitor, which may be the
// daemon's hooks.
type PlugArgs struct {
	Disk    string  `json:"disk"`
	QMP     string  `json:"qmp,omitempty"` // address of QEMU's monitor; empty: that of --qmp
	ID      string  `json:"id,omitempty"`  // of the device
	Bus     string  `json:"bus,omitempty"`
	Queues  int     `json:"queues,omitempty"`
	Timeout float64 `json:"timeout,omitempty"` // seconds, 0: 10
}

// plugLimit is the default time for QEMU and the guest.
const plugLimit = 10 * time.Second

// attach is cow-attach.
func (d *Daemon) attach(ctx context.Context, a PlugArgs) (any, error) {
	found, err := d.named([]string{a.Disk})
	if err != nil {
		return nil, err
	}
	e := found[0]
	switch now, _ := e.Connected(); {
	case e.listener == nil:
		return nil, fmt.Errorf("disk %q is served on one connection only (--fd): "+
			"serve it on a socket", a.Disk)
	case now:
		// A second QEMU would wait for the first to leave, and its guest with it.
		return nil, fmt.Errorf("disk %q is connected to a QEMU already: detach it there first",
			a.Disk)
	case a.Queues < 0 || a.Queues > e.dev.Queues():
		return nil, fmt.Errorf("disk %q offers %d queues, not %d: serve it with --queues",
			a.Disk, e.dev.Queues(), a.Queues)
	}
	ctx, m, end, err := d.plugging(ctx, &a)
	if err != nil {
		return nil, err
	}
	defer end()
	socket := e.listener.Addr().String()
	made, err := qmp.Attach(ctx, m,
		qmp.Plug{Disk: a.Disk, Socket: socket, ID: a.ID, Bus: a.Bus, Queues: a.Queues})
	if err != nil {
		return nil, err
	}
	d.log.Info("attached", "disk", a.Disk, "device", made.ID, "bus", made.Bus)
	return made, nil
}

// detach is cow-detach.
func (d *Daemon) detach(ctx context.Context, a PlugArgs) (any, error) {
	if a.Bus != "" || a.Queues != 0 {
		return nil, errors.New("cow-detach takes neither bus nor queues")
	}
	found, err := d.named([]string{a.Disk})
	if err != nil {
		return nil, err
	}
	ctx, m, end, err := d.plugging(ctx, &a)
	if err != nil {
		return nil, err
	}
	defer end()
	if err := qmp.Detach(ctx, m, a.Disk, a.ID); err != nil {
		return nil, err
	}
	found[0].awaitEnd(ctx)
	d.log.Info("detached", "disk", a.Disk)
	return nil, nil
}

// endLimit is the time for a session to notice that its QEMU has closed the connection.
const endLimit = 2 * time.Second

// awaitEnd waits for the end of the session, so that the disk can be attached again at once. It
// returns after endLimit at the latest: another QEMU's session may continue.
func (e *Export) awaitEnd(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, endLimit)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		if now, _ := e.Connected(); !now {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// plugging returns the monitor for attach and detach: the hooks' monitor if it has that address,
// else a new connection until end.
func (d *Daemon) plugging(
	ctx context.Context, a *PlugArgs,
) (_ context.Context, m *qmp.Monitor, end func(), err error) {
	limit := plugLimit
	if a.Timeout != 0 {
		if limit, err = positiveSeconds("timeout", a.Timeout); err != nil {
			return nil, nil, nil, err
		}
	}
	if err := d.checkReach(ctx, &qmp.Spec{QMP: a.QMP}); err != nil {
		return nil, nil, nil, err
	}
	closeMonitor := func() {}
	switch m = d.monitorFor(a.QMP); {
	case m != nil:
	case a.QMP == "":
		return nil, nil, nil, errors.New("qmp: the address of QEMU's monitor is missing: unix:PATH")
	default:
		addr, err := qmp.ParseAddress(a.QMP)
		if err != nil {
			return nil, nil, nil, fmt.Errorf("QEMU's monitor: %w", err)
		}
		m = qmp.NewMonitor(qmp.MonitorOptions{Log: d.log, Address: addr})
		closeMonitor = func() { m.Close() }
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	return ctx, m, func() { cancel(); closeMonitor() }, nil
}
