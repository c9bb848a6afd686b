package daemon

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"cowblk/backend/control"
	"cowblk/backend/nbd"
	"cowblk/cow"
	"cowblk/cow/store"
)

// NBDInfo answers query-cow-exports.
type NBDInfo struct {
	Addresses []string         `json:"addresses"` // where it listens; none: it is stopped
	Exports   []nbd.ExportInfo `json:"exports"`
}

// nbdExports is the daemon's NBD server and its exports: tags of the store and stopped disks.
type nbdExports struct {
	daemon *Daemon

	mu     sync.Mutex
	server *nbd.Server // nil: stopped
	disks  map[string]*store.Reading
	closed bool
}

func newNBDExports(d *Daemon) *nbdExports { return &nbdExports{daemon: d} }

// newServer returns an NBD server whose UNIX sockets the control group may use.
func (r *nbdExports) newServer() *nbd.Server {
	return nbd.New(nbd.Options{Log: r.daemon.log, Group: r.daemon.opts.ControlGroup})
}

// register registers the commands. They have QEMU's names where QEMU has such commands.
func (r *nbdExports) register(s *control.Server) {
	s.RegisterChange("nbd-server-start", control.Typed(r.start))
	s.RegisterChange("nbd-server-stop", control.Typed(func(context.Context, struct{}) (any, error) {
		return nil, r.stop(false)
	}))
	s.RegisterChange("cow-export-add", control.Typed(r.addCommand))
	s.RegisterChange("cow-export-del", control.Typed(r.remove))
	s.Register("query-cow-exports", control.Typed(func(context.Context, struct{}) (any, error) {
		return r.query(), nil
	}))
}

// addrArgs are the arguments of nbd-server-start, and its answer.
type addrArgs struct {
	Addr string `json:"addr"`
}

// exportArgs are the arguments of commands about one export.
type exportArgs struct {
	Name string `json:"name"`
}

func (a *exportArgs) check() error {
	if a.Name == "" {
		return &control.Error{Class: control.GenericError,
			Desc: "Parameter 'name' is missing: a disk's tag, such as vm1@before-upgrade"}
	}
	return nil
}

// start is nbd-server-start: it listens on an address; the first call starts the server.
func (r *nbdExports) start(ctx context.Context, a addrArgs) (any, error) {
	at, err := nbd.ParseAddress(a.Addr)
	if err != nil {
		return nil, err
	}
	if err := r.checkStart(ctx, at); err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil, nbd.ErrClosed
	}
	s := r.server
	if s == nil {
		s = r.newServer()
	}
	if at, err = s.Listen(at); err != nil {
		if at.Network == "unix" {
			err = r.daemon.explainConfined(err)
		}
		return nil, err
	}
	if r.server == nil {
		r.server, r.disks = s, map[string]*store.Reading{}
	}
	r.daemon.log.Info("NBD server listens", "address", at.String())
	return addrArgs{at.String()}, nil
}

// addCommand is cow-export-add.
func (r *nbdExports) addCommand(ctx context.Context, a exportArgs) (any, error) {
	if err := a.check(); err != nil {
		return nil, err
	}
	if err := r.checkAdd(ctx, a.Name); err != nil {
		return nil, err
	}
	return r.add(ctx, a.Name)
}

// add opens a disk and exports it. It holds no lock meanwhile: opening may take long.
func (r *nbdExports) add(ctx context.Context, name string) (*nbd.ExportInfo, error) {
	s, err := r.running()
	if err != nil {
		return nil, err
	}
	ref, err := store.ParseRef(name)
	if err != nil {
		return nil, err
	}
	d := r.daemon
	disk, err := d.opts.Store.OpenTag(ctx, ref, cow.Options{Log: d.log,
		ForceShare: d.opts.Cow.ForceShare})
	if err != nil {
		return nil, d.explainConfined(ExplainLimits(err))
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.server != s {
		return nil, errors.Join(errors.New("the NBD server was stopped meanwhile"), disk.Close())
	}
	if err := s.AddExport(name, disk); err != nil {
		return nil, errors.Join(err, disk.Close())
	}
	r.disks[name] = disk
	r.daemon.log.Info("NBD export added", "export", name, "size", disk.Size())
	for _, e := range s.Exports() {
		if e.Name == name {
			return &e, nil
		}
	}
	return nil, nil
}

// running returns the server, or an error that says how to start it.
func (r *nbdExports) running() (*nbd.Server, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.server == nil {
		return nil, &control.Error{Class: control.DeviceNotActive,
			Desc: `the NBD server is not running: ` +
				`start it with nbd-server-start {"addr": "unix:PATH"}`}
	}
	return r.server, nil
}

// remove is cow-export-del: it disconnects the export's clients and closes its disk.
func (r *nbdExports) remove(_ context.Context, a exportArgs) (any, error) {
	if err := a.check(); err != nil {
		return nil, err
	}
	s, err := r.running()
	if err != nil {
		return nil, err
	}
	name := a.Name
	r.mu.Lock()
	disk := r.disks[name]
	delete(r.disks, name)
	r.mu.Unlock()
	if disk == nil {
		return nil, &control.Error{Class: control.DeviceNotFound,
			Desc: fmt.Sprintf("there is no export %q: query-cow-exports lists them", name)}
	}
	err = errors.Join(s.RemoveExport(name), disk.Close())
	r.daemon.log.Info("NBD export removed", "export", name)
	return nil, err
}

// stop ends the server and its exports. forGood: start fails from now on.
func (r *nbdExports) stop(forGood bool) error {
	r.mu.Lock()
	s, disks := r.server, r.disks
	r.server, r.disks = nil, nil
	r.closed = r.closed || forGood
	r.mu.Unlock()
	if s == nil {
		return nil
	}
	errs := []error{s.Close()}
	for _, d := range disks {
		errs = append(errs, d.Close())
	}
	r.daemon.log.Info("NBD server stopped")
	return errors.Join(errs...)
}

func (r *nbdExports) query() NBDInfo {
	r.mu.Lock()
	defer r.mu.Unlock()
	info := NBDInfo{Addresses: []string{}, Exports: []nbd.ExportInfo{}}
	if r.server == nil {
		return info
	}
	for _, a := range r.server.Addresses() {
		info.Addresses = append(info.Addresses, a.String())
	}
	info.Exports = r.server.Exports()
	return info
}
