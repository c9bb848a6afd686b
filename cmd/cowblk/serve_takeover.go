package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"

	"cowblk/backend/control"
	"cowblk/backend/daemon"
	"cowblk/backend/takeover"
	"cowblk/cow"
	"cowblk/cow/store"
)

// oldProcess is the process that hands over the disks ("cowblk serve --takeover"). Until confirm it
// can continue by itself: this process removes nothing that both share and writes nothing that the
// old process does not expect.
type oldProcess struct {
	offer    *takeover.Offer
	received *takeover.Received
	sockets  []*control.Listener // this process removes their files after confirm
}

// requestTakeover asks the process that serves the disks to hand them over, after all checks that
// are possible before. nil: no process serves them. The old process serves until awaitDetach.
func (a *app) requestTakeover(ctx context.Context, st *store.Store, names []string, f *serveFlags, log *slog.Logger) (*oldProcess, error) {
	path, err := controlSocketOf(st, names)
	var apart *notOneProcessError
	if errors.As(err, &apart) {
		return nil, fmt.Errorf("takeover: %w: a process takes over the disks of one process; serve the others from another one", err)
	}
	if err != nil || path == "" {
		return nil, err
	}
	for _, name := range names {
		if err := st.Preflight(ctx, name, f.data.cowOptions(log)); err != nil {
			return nil, fmt.Errorf("takeover: the process that serves %q continues: %w", names[0], err)
		}
	}
	// Request says more about a process that does not answer.
	if _, err := dialServing(ctx, st, path, names); errors.Is(err, store.ErrRefused) {
		return nil, fmt.Errorf("takeover: %w", err)
	}
	offer, err := takeover.Request(ctx, path, names)
	if errors.Is(err, control.ErrNoDaemon) || errors.Is(err, io.EOF) {
		log.Warn("the process that served the disks has ended", "err", err)
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

// endpoints returns the sockets of the old process.
func (p *oldProcess) endpoints(disks []*openDisk) (es endpoints, err error) {
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
		if fd, ok := p.received.Connections[o.name]; ok {
			delete(p.received.Connections, o.name)
			if e.accepted, err = frontEndConn(fd); err != nil {
				return nil, errors.Join(fmt.Errorf("disk %q: %w", o.name, err), e.listener.Close(), es.close())
			}
		}
		es = append(es, e)
	}
	return es, nil
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

func frontEndConn(fd int) (*net.UnixConn, error) {
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

// nbdServer returns the sockets and exports of the old process's NBD server.
func (p *oldProcess) nbdServer() *daemon.InheritedNBD {
	in := &daemon.InheritedNBD{Sockets: map[string]int{}, Exports: p.offer.Exports}
	for i := range p.offer.NBD {
		m := &p.offer.NBD[i]
		in.Sockets[m.Address], m.FD = m.FD, 0
	}
	return in
}

// confirm tells the old process to end.
func (p *oldProcess) confirm() {
	for _, l := range p.sockets {
		l.SetKeepFile(false)
	}
	_ = p.offer.Confirm() // an error means that it has already ended
	p.close()
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

// servedDisks implements daemon.DiskOwner for the disks of a serving process.
type servedDisks struct {
	store *store.Store
	disks []*openDisk
	flags *serveFlags
	log   *slog.Logger
	names *servedManifests
}

func (k *servedDisks) find(name string) (*openDisk, error) {
	for _, o := range k.disks {
		if o.name == name {
			return o, nil
		}
	}
	return nil, fmt.Errorf("disk %q is not served by this process", name)
}

// Detach implements daemon.DiskOwner.
func (k *servedDisks) Detach(name string) (detached bool, err error) {
	o, err := k.find(name)
	if err != nil {
		return false, err
	}
	return o.detach()
}

// detach closes a disk for another process to continue, and releases its lock.
func (o *openDisk) detach() (detached bool, err error) {
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

// Reopen implements daemon.DiskOwner.
func (k *servedDisks) Reopen(ctx context.Context, name string) (*cow.Disk, error) {
	o, err := k.find(name)
	if err != nil {
		return nil, err
	}
	reopened, err := openStored(ctx, k.store, name, k.flags, k.log)
	if errors.Is(err, store.ErrInUse) {
		if v, ok := k.store.Serving(name); ok && v.Socket != "" && v.PID != os.Getpid() {
			return nil, fmt.Errorf("%w: %w", daemon.ErrTaken, err)
		}
	}
	if err != nil {
		return nil, err
	}
	o.disk, o.lock, o.manifest, o.close = reopened.disk, reopened.lock, reopened.manifest, reopened.close
	k.names.set([]*store.Manifest{o.manifest})
	if err := o.lock.SetServing(o.serving); err != nil {
		k.log.Error("the disk is served again, but its lock does not record it", "disk", name, "err", err)
	}
	return o.disk, nil
}
