package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"cowblk/backend"
	"cowblk/backend/control"
	"cowblk/backend/daemon"
	"cowblk/cow/store"
)

// serving is a set of open disks and their sockets.
type serving struct {
	daemon      *daemon.Daemon
	control     *control.Server // the daemon's Run closes it; nil: none
	disks       []*openDisk
	log         *slog.Logger
	fromSystemd *control.Listener // the control socket in systemd's fd store; nil: none
	old         *oldProcess       // the old process of a takeover, which waits for the outcome; nil: none
}

// closeFailed closes everything after a failed start. It leaves the disks of a takeover as the old
// process detached them.
func (s *serving) closeFailed() error {
	if s.old == nil {
		return s.close()
	}
	var errs []error
	for _, o := range s.disks {
		_, err := o.detach()
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// openServing opens the disks, then the sockets: a front-end that can connect can be served. After
// an error nothing is open, and the old process of a takeover continues.
func (a *app) openServing(ctx context.Context, names []string, f *serveFlags, log *slog.Logger) (s *serving, err error) {
	// If the reader of the log ends, log lines are lost but the disks are served.
	signal.Ignore(syscall.SIGPIPE)
	s = &serving{log: log}
	defer func() {
		if err == nil {
			return
		}
		err = errors.Join(err, s.closeFailed())
		if s.old != nil {
			s.old.abort(err)
		}
	}()
	var st *store.Store
	if f.blkFile != "" {
		own, _ := a.openStore() // nil: this user has none
		o, err := openRaw(own, f.blkFile, f, log)
		if err != nil {
			return s, err
		}
		s.disks = append(s.disks, o)
	} else if st, err = a.openTrusted(); err != nil {
		return s, err
	}
	if st != nil {
		if err := checkDescriptors(st, names, f.queues, log); err != nil {
			return s, err
		}
	}
	if f.takeover {
		if s.old, err = a.requestTakeover(ctx, st, names, f, log); err != nil {
			return s, err
		}
	}
	if s.old != nil {
		if err := s.old.awaitDetach(ctx, log); err != nil {
			return s, err
		}
	}
	for _, name := range names {
		o, err := openStored(ctx, st, name, f, log)
		if err != nil {
			return s, err
		}
		s.disks = append(s.disks, o)
	}
	sockets, err := s.findSockets(f, st)
	if err != nil {
		return s, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, sockets.close())
		}
	}()
	controlPath, err := s.listenControl(st, f, log)
	if err != nil {
		return s, err
	}
	defer func() {
		if err != nil && s.control != nil {
			err = errors.Join(err, s.control.Close())
		}
	}()
	for i, o := range s.disks {
		dev, err := backend.NewDevice(o.disk, backend.DeviceOptions{
			Name: o.name, Serial: f.serial, Queues: f.queues, ReadOnly: f.readOnly, Cache: f.data.cache,
			WritebackWithoutFlush: f.data.withoutFlush, Poll: f.data.poll, Log: log,
		})
		if err != nil {
			return s, err
		}
		e := sockets[i]
		o.serving = store.Serving{PID: os.Getpid(), Control: controlPath, Socket: e.path}
		if o.lock != nil {
			if err := o.lock.SetServing(o.serving); err != nil {
				return s, err
			}
		}
		s.daemon.Add(daemon.NewExport(daemon.ExportOptions{Device: dev, Listener: e.listener, Conn: e.conn, First: e.accepted, Log: log}))
		log.Info("serving", "disk", o.name, "socket", e.path, "size", bytesText(o.disk.Size()),
			"layers", o.disk.Depth(), "read_only", f.readOnly || o.disk.ReadOnly(), "cache", f.data.cache)
	}
	a.storeSockets(s.disks, sockets, s.control, log)
	return s, a.confine(s, st, &f.sandbox, log)
}

// listenControl makes the daemon and, for disks of a store, one control socket for the process. The
// socket has the name of the first disk, and each disk's lock records it.
func (s *serving) listenControl(st *store.Store, f *serveFlags, log *slog.Logger) (path string, err error) {
	if st == nil {
		s.daemon = daemon.New(daemon.Options{Log: log})
		return "", nil
	}
	hooks, space, err := f.hooks.options()
	if err != nil {
		return "", err
	}
	full, err := f.hooks.enospcOptions()
	if err != nil {
		return "", err
	}
	s.control = control.NewServer(control.Options{Log: log, Version: controlVersion(), Group: f.controlGroup})
	if path, err = s.controlSocket(st, f.controlGroup); err != nil {
		return "", fmt.Errorf("control %w", err)
	}
	var inherited *daemon.InheritedNBD
	if s.old != nil {
		inherited = s.old.nbdServer()
	}
	names := &servedManifests{store: st, manifests: map[string]*store.Manifest{}}
	var held []daemon.QuiescedGuest
	for _, o := range s.disks {
		names.manifests[o.name] = o.manifest
		h := daemon.QuiescedGuest{Disk: o.name}
		found, err := st.QuiesceRecord(o.name, &h.Spec)
		if err != nil {
			log.Error("the record of a quiesced guest cannot be read: the guest may still be frozen or paused", "disk", o.name, "err", err)
		}
		if found {
			held = append(held, h)
		}
	}
	s.daemon = daemon.New(daemon.Options{
		Log: log, Control: s.control, Store: st.Dir(), Names: names, Quiesced: held, Hooks: hooks, Space: space, ENOSPC: full,
		Owner: &servedDisks{store: st, disks: s.disks, flags: f, log: log, names: names}, NBDOf: inherited,
		NBD: daemon.NBDOptions{
			Open: tagOpener(st, log, f.data.forceShare, f.sandbox.explainer(st)), Group: f.controlGroup, SocketDir: st.RunDir(), Explain: f.sandbox.explainer(st),
		},
	})
	return path, nil
}

// controlSocket makes the control socket, or takes it from the old process or systemd. In each case
// only the owner and group may connect.
func (s *serving) controlSocket(st *store.Store, group string) (path string, err error) {
	l := s.fromSystemd
	if s.old != nil {
		if l, err = s.old.adopt(&s.old.offer.Control); err != nil {
			return "", err
		}
	}
	if l != nil {
		return l.Path(), errors.Join(s.control.Add(l), l.SetGroup(group))
	}
	if path, err = st.ControlSocket(s.disks[0].name); err != nil {
		return "", err
	}
	return listenInRunDir(st, path, s.control.Listen, s.log)
}
