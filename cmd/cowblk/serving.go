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
	"cowblk/cow/store"
)

// serving is a set of open disks behind sockets.
type serving struct {
	daemon  *backend.Daemon
	control *control.Server // the daemon's, whose Run closes it; nil: none
	disks   []*opened
	log     *slog.Logger
	given   *control.Listener // the control socket that systemd has kept since the last start; nil: none
	before  *predecessor      // that has handed the disks over, and is to be told how it went; nil: none
}

// giveUp is close after a failed start: the predecessor finds its disks as it has left them.
func (s *serving) giveUp() error {
	if s.before == nil {
		return s.close()
	}
	var errs []error
	for _, o := range s.disks {
		_, err := o.detach()
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// openServing opens the disks first and makes the sockets afterwards: a front-end that can connect can be served. On
// failure nothing is left open, and the predecessor, if there is one, goes on.
func (a *app) openServing(ctx context.Context, names []string, f *serveFlags, log *slog.Logger) (s *serving, err error) {
	// A log whose reader has ended must not end the disks: what is written to it is lost instead.
	signal.Ignore(syscall.SIGPIPE)
	s = &serving{log: log}
	defer func() {
		if err == nil {
			return
		}
		err = errors.Join(err, s.giveUp())
		if s.before != nil {
			s.before.failed(err)
		}
	}()
	var st *store.Store
	if f.blkFile != "" {
		o, err := openRaw(f.blkFile, f, log)
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
		if s.before, err = a.askPredecessor(ctx, st, names, f, log); err != nil {
			return s, err
		}
	}
	if s.before != nil {
		if err := s.before.replace(ctx, log); err != nil {
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
		s.daemon.Add(backend.NewExport(backend.ExportOptions{Device: dev, Listener: e.listener, Conn: e.conn, First: e.first, Log: log}))
		log.Info("serving", "disk", o.name, "socket", e.path, "size", bytesText(o.disk.Size()),
			"layers", o.disk.Depth(), "read_only", f.readOnly || o.disk.ReadOnly(), "cache", f.data.cache)
	}
	a.keepInStore(s.disks, sockets, s.control, log)
	return s, a.confine(s, st, &f.sandbox, log)
}

// listenControl makes the daemon and, for disks of a store, its control socket: one a process, named after the first
// disk and recorded in the lock of each.
func (s *serving) listenControl(st *store.Store, f *serveFlags, log *slog.Logger) (path string, err error) {
	if st == nil {
		s.daemon = backend.NewDaemon(backend.DaemonOptions{Log: log})
		return "", nil
	}
	hooks, space, err := f.hooks.options()
	if err != nil {
		return "", err
	}
	full, err := f.hooks.full()
	if err != nil {
		return "", err
	}
	s.control = control.NewServer(control.Options{Log: log, Version: controlVersion(), Group: f.controlGroup})
	if path, err = s.controlSocket(st, f.controlGroup); err != nil {
		return "", fmt.Errorf("control %w", err)
	}
	var inherited *backend.InheritedNBD
	if s.before != nil {
		inherited = s.before.inherited()
	}
	names := &storeNames{store: st, manifests: map[string]*store.Manifest{}}
	var held []backend.Held
	for _, o := range s.disks {
		names.manifests[o.name] = o.manifest
		h := backend.Held{Disk: o.name}
		found, err := st.Note(o.name, &h.Spec)
		if err != nil {
			log.Error("a guest may have been left frozen or paused, and the note about it cannot be read", "disk", o.name, "err", err)
		}
		if found {
			held = append(held, h)
		}
	}
	s.daemon = backend.NewDaemon(backend.DaemonOptions{
		Log: log, Control: s.control, Store: st.Dir(), Names: names, Held: held, Hooks: hooks, Space: space, Full: full,
		Keeper: &keeper{store: st, disks: s.disks, flags: f, log: log, names: names}, NBDOf: inherited,
		NBD: backend.NBDOptions{
			Open: readTags(st, log, f.data.forceShare, f.sandbox.explain(st)), Group: f.controlGroup, SocketDir: st.RunDir(), Explain: f.sandbox.explain(st),
		},
	})
	return path, nil
}

// controlSocket makes the control socket, or takes over the predecessor's or systemd's. Whoever has made it, group may
// connect and no other.
func (s *serving) controlSocket(st *store.Store, group string) (path string, err error) {
	l := s.given
	if s.before != nil {
		if l, err = s.before.adopt(&s.before.offer.Control); err != nil {
			return "", err
		}
	}
	if l != nil {
		return l.Path(), errors.Join(s.control.Add(l), l.Permit(group))
	}
	if path, err = st.ControlSocket(s.disks[0].name); err != nil {
		return "", err
	}
	return listenRun(st, path, s.control.Listen, s.log)
}
