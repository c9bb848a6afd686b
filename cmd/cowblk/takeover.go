package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"

	"cowblk/backend"
	"cowblk/backend/control"
	"cowblk/backend/takeover"
	"cowblk/cow"
	"cowblk/cow/store"
)

// predecessor is the process that serves the disks and is to hand them over ("cowblk serve --takeover"). Until it is
// told that we serve, it can go on itself: nothing that it shares with us is removed, and nothing is written that it
// does not expect.
type predecessor struct {
	offer   *takeover.Offer
	relics  *takeover.Relics
	sockets []*control.Listener // whose files are ours to remove once we serve
}

// askPredecessor asks the process that serves the disks for them, after all that can be done before: nil if none does.
// It goes on serving until (*predecessor).replace.
func (a *app) askPredecessor(ctx context.Context, st *store.Store, names []string, f *serveFlags, log *slog.Logger) (*predecessor, error) {
	path, err := servedBy(st, names)
	var apart *apartError
	if errors.As(err, &apart) {
		return nil, fmt.Errorf("takeover: %w: one process takes over the disks of one; serve the others by a process of their own", err)
	}
	if err != nil || path == "" {
		return nil, err
	}
	for _, name := range names {
		if err := st.Rehearse(ctx, name, f.data.open(log)); err != nil {
			return nil, fmt.Errorf("takeover: the process that serves %q goes on: %w", names[0], err)
		}
	}
	// Of a process that does not answer Request says more.
	if _, err := reach(ctx, st, path, names); errors.Is(err, store.ErrRefused) {
		return nil, fmt.Errorf("takeover: %w", err)
	}
	offer, err := takeover.Request(ctx, path, names)
	if errors.Is(err, control.ErrNoDaemon) || errors.Is(err, io.EOF) {
		log.Warn("the process that served the disks has gone", "err", err)
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return &predecessor{offer: offer}, nil
}

// replace has the predecessor leave the disks. It may have died meanwhile: the disks are then opened as after a crash.
func (p *predecessor) replace(ctx context.Context, log *slog.Logger) (err error) {
	p.relics, err = p.offer.Go(ctx)
	if errors.Is(err, io.EOF) {
		log.Warn("the process that served the disks has died")
		return nil
	}
	return err
}

// endpoints are the predecessor's sockets.
func (p *predecessor) endpoints(disks []*opened) (es endpoints, err error) {
	for _, o := range disks {
		e := endpoint{}
		for i := range p.offer.Sockets {
			if m := &p.offer.Sockets[i]; m.Disk == o.name && m.FD > 0 {
				l, err := p.adopt(m)
				if err != nil {
					return nil, errors.Join(fmt.Errorf("disk %q: %w", o.name, err), es.close())
				}
				e.path, e.listener = m.Path, l
			}
		}
		if e.listener == nil {
			return nil, errors.Join(fmt.Errorf("disk %q: its socket was not handed over: %w", o.name, takeover.ErrProtocol), es.close())
		}
		if fd, ok := p.relics.Connections[o.name]; ok {
			delete(p.relics.Connections, o.name)
			if e.first, err = connection(fd); err != nil {
				return nil, errors.Join(fmt.Errorf("disk %q: %w", o.name, err), e.listener.Close(), es.close())
			}
		}
		es = append(es, e)
	}
	return es, nil
}

// adopt makes a listener of a socket that was handed over.
func (p *predecessor) adopt(m *takeover.Message) (*control.Listener, error) {
	fd := m.FD
	m.FD = 0
	l, err := control.AdoptUnix(fd, m.Path)
	if err != nil {
		return nil, err
	}
	if !m.Keep && !l.Kept() {
		p.sockets = append(p.sockets, l)
	}
	l.Keep(true)
	return l, nil
}

func connection(fd int) (*net.UnixConn, error) {
	file := os.NewFile(uintptr(fd), "connection")
	defer file.Close()
	c, err := net.FileConn(file)
	if err != nil {
		return nil, err
	}
	uc, ok := c.(*net.UnixConn)
	if !ok {
		c.Close()
		return nil, fmt.Errorf("expected the connection of a front-end, found %s", c.LocalAddr().Network())
	}
	return uc, nil
}

// inherited is the predecessor's NBD server.
func (p *predecessor) inherited() *backend.InheritedNBD {
	in := &backend.InheritedNBD{Sockets: map[string]int{}, Exports: p.offer.Exports}
	for i := range p.offer.NBD {
		m := &p.offer.NBD[i]
		in.Sockets[m.Address], m.FD = m.FD, 0
	}
	return in
}

// serving lets the predecessor end.
func (p *predecessor) serving() {
	for _, l := range p.sockets {
		l.Keep(false)
	}
	_ = p.offer.Serving() // it may have gone already, which is as good
	p.close()
}

// failed lets the predecessor go on. Nothing of ours uses the disks any more.
func (p *predecessor) failed(why error) {
	_ = p.offer.Failed(why)
	p.close()
}

func (p *predecessor) close() {
	if p.relics != nil {
		p.relics.Close()
	}
	p.offer.Close()
}

// keeper is the backend.Keeper of the disks of a serving process.
type keeper struct {
	store *store.Store
	disks []*opened
	flags *serveFlags
	log   *slog.Logger
	names *storeNames
}

func (k *keeper) find(name string) (*opened, error) {
	for _, o := range k.disks {
		if o.name == name {
			return o, nil
		}
	}
	return nil, fmt.Errorf("disk %q is not served by this process", name)
}

// Detach implements backend.Keeper.
func (k *keeper) Detach(name string) (detached bool, err error) {
	o, err := k.find(name)
	if err != nil {
		return false, err
	}
	return o.detach()
}

// detach closes a disk for another process to go on with, and gives up its lock.
func (o *opened) detach() (detached bool, err error) {
	detached, err = o.disk.Detach()
	if !detached {
		return false, err
	}
	o.close = func() error { return nil }
	if o.lock != nil {
		err = errors.Join(err, o.lock.Unlock())
	}
	return true, err
}

// Reopen implements backend.Keeper.
func (k *keeper) Reopen(ctx context.Context, name string) (*cow.Disk, error) {
	o, err := k.find(name)
	if err != nil {
		return nil, err
	}
	again, err := openStored(ctx, k.store, name, k.flags, k.log)
	if errors.Is(err, store.ErrInUse) {
		if v, ok := k.store.Serving(name); ok && v.Socket != "" && v.PID != os.Getpid() {
			return nil, fmt.Errorf("%w: %w", backend.ErrTaken, err)
		}
	}
	if err != nil {
		return nil, err
	}
	o.disk, o.lock, o.manifest, o.close = again.disk, again.lock, again.manifest, again.close
	k.names.set([]*store.Manifest{o.manifest})
	if err := o.lock.SetServing(o.serving); err != nil {
		k.log.Error("the disk is served again, but its lock does not say so", "disk", name, "err", err)
	}
	return o.disk, nil
}
