package daemon

import (
	"context"
	"errors"
	"syscall"

	"golang.org/x/sys/unix"

	"cowblk/backend/nbd"
	"cowblk/backend/takeover"
	"cowblk/cow/store"
)

// offer sends the server's sockets and the names of its exports, if it runs.
func (r *nbdExports) offer(h *takeoverSession) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.server == nil {
		return nil
	}
	lost, err := r.server.EachSocket(func(a nbd.Address, l syscall.Conn) error {
		return h.pass(takeover.Message{Kind: takeover.NBD, Address: a.String()}, l)
	})
	if err != nil {
		return err
	}
	for _, a := range lost {
		r.daemon.log.Warn("a socket of the NBD server cannot be handed over: start it again in the new process", "address", a.String())
	}
	for _, e := range r.server.Exports() {
		if err := h.c.Send(takeover.Message{Kind: takeover.Export, Name: e.Name}); err != nil {
			return err
		}
	}
	return nil
}

// keepFiles leaves the sockets' files to the new process.
func (r *nbdExports) keepFiles() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.server != nil {
		r.server.KeepFiles()
	}
}

// takeOver continues the server of the old process: its sockets (messages of kind NBD) and exports.
// New clients wait meanwhile.
func (r *nbdExports) takeOver(ctx context.Context, sockets []takeover.Message, exports []string) {
	if len(sockets) == 0 {
		return
	}
	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		for _, m := range sockets {
			unix.Close(m.FD)
		}
		return
	}
	s := r.newServer()
	r.server, r.disks = s, map[string]*store.Reading{}
	r.mu.Unlock()
	for _, name := range exports {
		if _, err := r.add(ctx, name); err != nil {
			r.daemon.log.Error("an NBD export of the old process is lost", "export", name, "err",
				err)
		}
	}
	var errs []error
	for _, m := range sockets {
		a, err := nbd.ParseAddress(m.Address)
		if err != nil {
			unix.Close(m.FD)
		} else {
			err = s.Adopt(a, m.FD)
		}
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		r.daemon.log.Error("a socket of the old process's NBD server is lost", "err", err)
	}
}
