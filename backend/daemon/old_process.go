package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"

	"cowblk/backend/control"
	"cowblk/backend/takeover"
)

// oldProcess is the process that hands over the disks ("cowblk serve --takeover"). Until confirm it
// can continue by itself: this process removes nothing that both share and writes nothing that the
// old process does not expect.
type oldProcess struct {
	offer    *takeover.Offer
	received *takeover.Received
	sockets  []*control.Listener // this process removes their files after confirm
}

// requestTakeover asks the process at Options.TakeOverFrom to hand over the disks, after all checks
// that are possible before. nil: that process has ended. It serves until awaitDetach.
func (d *Daemon) requestTakeover(ctx context.Context) (*oldProcess, error) {
	names := d.opts.Disks
	for _, name := range names {
		if err := d.opts.Store.Preflight(ctx, name, d.opts.Cow); err != nil {
			return nil, fmt.Errorf("takeover: the process that serves %q continues: %w", names[0],
				err)
		}
	}
	offer, err := takeover.Request(ctx, d.opts.TakeOverFrom, names)
	if errors.Is(err, control.ErrNoDaemon) || errors.Is(err, io.EOF) {
		d.log.Warn("the process that served the disks has ended", "err", err)
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return &oldProcess{offer: offer}, nil
}

// awaitDetach makes the old process detach the disks. If that process has died, the disks are
// opened as after a crash.
func (p *oldProcess) awaitDetach(ctx context.Context, log *slog.Logger) (err error) {
	p.received, err = p.offer.AwaitDetach(ctx)
	if errors.Is(err, io.EOF) {
		log.Warn("the process that served the disks has died")
		return nil
	}
	return err
}

// passSockets gives the disks the sockets of the old process.
func (p *oldProcess) passSockets(exports []*Export) (err error) {
	for _, e := range exports {
		for i := range p.offer.Sockets {
			if m := &p.offer.Sockets[i]; m.Disk == e.name && m.FD > 0 {
				if e.listener, err = p.adopt(m); err != nil {
					return fmt.Errorf("disk %q: %w", e.name, err)
				}
				e.path = m.Path
			}
		}
		if e.listener == nil {
			return fmt.Errorf("disk %q: its socket was not handed over: %w", e.name,
				takeover.ErrProtocol)
		}
		if fd, ok := p.received.Connections[e.name]; ok {
			delete(p.received.Connections, e.name)
			if e.pending, err = unixConn(fd); err != nil {
				return fmt.Errorf("disk %q: connection of a front-end: %w", e.name, err)
			}
		}
	}
	return nil
}

// adopt returns a listener on a socket of the old process.
func (p *oldProcess) adopt(m *takeover.Message) (*control.Listener, error) {
	fd := m.FD
	m.FD = 0
	l, err := control.AdoptUnix(fd, m.Path)
	if err != nil {
		return nil, err
	}
	if !m.KeepFile && !l.KeepsFile() {
		p.sockets = append(p.sockets, l)
	}
	l.SetKeepFile(true)
	return l, nil
}

// confirm tells the old process to end, and returns the sockets of its NBD server.
func (p *oldProcess) confirm() (nbd []takeover.Message) {
	for _, l := range p.sockets {
		l.SetKeepFile(false)
	}
	_ = p.offer.Confirm() // an error means that it has already ended
	nbd, p.offer.NBD = p.offer.NBD, nil
	p.close()
	return nbd
}

// abort tells the old process to continue. This process must have closed the disks.
func (p *oldProcess) abort(why error) {
	_ = p.offer.Abort(why)
	p.close()
}

func (p *oldProcess) close() {
	if p.received != nil {
		p.received.Close()
	}
	p.offer.Close()
}
