package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"

	"cowblk/backend"
	"cowblk/backend/control"
	"cowblk/backend/nbd"
	"cowblk/cow"
	"cowblk/cow/shell"
	"cowblk/cow/store"
)

// exportFlags are the options of "cowblk export".
type exportFlags struct {
	listen []string
	group  string

	forceShare bool // see cow.Options.ForceShare
}

// exportInfo is what "cowblk export --json" prints of each export.
type exportInfo struct {
	Name string   `json:"name"`
	Size int64    `json:"size"` // bytes
	URIs []string `json:"uris"` // one a listener
}

func newExport(a *app) *cobra.Command {
	var f exportFlags
	cmd := &cobra.Command{
		Use:   "export NAME[@TAG]... --listen ADDRESS",
		Short: "Offer tags for reading over NBD: backups while the guest runs",
		Long: `Offer tags, or stopped disks, for reading over NBD (Network Block Device), in the foreground, until
SIGTERM or Ctrl-C. It prints the URIs that NBD clients take: nbdinfo, nbdcopy, qemu-img and others.

A tag can be read while its disk is served, promoted or even removed. A disk without a tag has to be
stopped, and cannot be started until the export ends.

ADDRESS is one of these, and --listen may be given several times:
  unix:PATH         a UNIX socket, mode 0600; --socket-group lets a group connect too
  tcp:PORT          a TCP port on the loopback interface, 127.0.0.1; port 0 takes a free one
  tcp:HOST:PORT     a TCP port elsewhere; an IPv6 address goes into brackets, 0.0.0.0 is everywhere
  vsock:CID:PORT    a port for guests of this machine (AF_VSOCK); the CID "any" is all of this machine's

NBD has neither encryption nor authentication here: whoever can connect to a TCP or vsock port can read
everything that is exported. Through a network, use a tunnel, such as ssh -L, to a port on 127.0.0.1.`,
		Example: `  cowblk promote vm1 --tag monday
  cowblk export vm1@monday --listen unix:/tmp/vm1.nbd
  nbdcopy 'nbd+unix:///vm1@monday?socket=/tmp/vm1.nbd' backup.raw

  cowblk export vm1@monday vm2@monday --listen tcp:10809
  qemu-img convert -O qcow2 nbd://127.0.0.1:10809/vm1@monday backup.qcow2`,
		Args:                  atLeast(1, "NAME"),
		DisableFlagsInUseLine: true,
		ValidArgsFunction:     a.complete(-1, tagNames, diskNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			refs, addresses, err := f.check(args)
			if err != nil {
				return err
			}
			return a.export(cmd.Context(), refs, addresses, &f)
		},
	}
	fl := cmd.Flags()
	fl.StringArrayVar(&f.listen, "listen", nil, "`ADDRESS` to listen on; may be repeated")
	fl.StringVar(&f.group, "socket-group", "", "let `GROUP` connect to the UNIX sockets too (mode 0660)")
	fl.BoolVar(&f.forceShare, "force-share", false, forceShareHelp)
	return cmd
}

func (f *exportFlags) check(args []string) (refs []store.Ref, addresses []nbd.Address, err error) {
	if len(f.listen) == 0 {
		return nil, nil, usagef("export: --listen is missing: where clients connect to, such as --listen %s", shell.Word("unix:/tmp/"+args[0]+".nbd"))
	}
	for _, l := range f.listen {
		at, err := nbd.ParseAddress(l)
		if err != nil {
			return nil, nil, usagef("export: --listen: %w", err)
		}
		if at.Network == "unix" {
			path, err := filepath.Abs(at.Path)
			if err == nil {
				err = control.CheckPath(path)
			}
			if err != nil {
				return nil, nil, usagef("export: --listen: %w", err)
			}
		}
		addresses = append(addresses, at)
	}
	seen := map[store.Ref]bool{}
	for _, arg := range args {
		ref, err := store.ParseRef(arg)
		if err != nil {
			return nil, nil, err
		}
		if seen[ref] {
			return nil, nil, usagef("export: %s is named twice", ref)
		}
		seen[ref] = true
		refs = append(refs, ref)
	}
	return refs, addresses, nil
}

// export serves until ctx is done. Everything is open before the first socket is made: a client that can connect
// finds all exports.
func (a *app) export(ctx context.Context, refs []store.Ref, addresses []nbd.Address, f *exportFlags) (err error) {
	log := a.serveLogger()
	st, err := a.openStore()
	if err != nil {
		return err
	}
	server := nbd.New(nbd.Options{Log: log, Group: f.group})
	closers := []func() error{}
	defer func() {
		err = errors.Join(err, server.Close()) // the readers first, then what they read
		for _, c := range closers {
			err = errors.Join(err, c())
		}
	}()
	for _, ref := range refs {
		r, err := st.OpenTag(ctx, ref, cow.Options{Log: log, ForceShare: f.forceShare})
		if err != nil {
			return err
		}
		closers = append(closers, r.Close)
		if err := server.AddExport(ref.String(), r); err != nil {
			return err
		}
	}
	for _, at := range addresses {
		bound, err := listenIn(st, server, at)
		if err != nil {
			return err
		}
		if reachable(bound) {
			log.Warn("everybody who can reach this port can read all exports: NBD has neither encryption nor authentication here", "address", bound.String())
		}
	}
	if err := a.printExports(server); err != nil {
		return err
	}
	if _, err := daemon.SdNotify(false, daemon.SdNotifyReady); err != nil {
		log.Warn("systemd was not told that the exports are ready", "err", err)
	}
	<-ctx.Done()
	log.Info("stopping")
	_, _ = daemon.SdNotify(false, daemon.SdNotifyStopping)
	return nil
}

// reachable reports whether others than this machine's users may be able to connect.
func reachable(at nbd.Address) bool {
	if at.Network != "tcp" || at.Host == "localhost" {
		return false
	}
	ip := net.ParseIP(at.Host)
	return ip == nil || !ip.IsLoopback()
}

func (a *app) printExports(server *nbd.Server) error {
	infos := []exportInfo{}
	for _, e := range server.Exports() {
		infos = append(infos, exportInfo{e.Name, e.Size, e.URIs})
	}
	if a.json {
		return a.printJSON(infos)
	}
	for _, e := range infos {
		for _, uri := range e.URIs {
			if _, err := fmt.Fprintln(a.out, uri); err != nil {
				return err
			}
		}
	}
	return nil
}

// readTags opens tags for a serving daemon that is told to export them. explain adds to an error what a person should
// know.
func readTags(st *store.Store, log *slog.Logger, forceShare bool, explain func(error) error) func(context.Context, string) (backend.Readable, error) {
	return func(ctx context.Context, name string) (backend.Readable, error) {
		ref, err := store.ParseRef(name)
		if err != nil {
			return nil, err
		}
		r, err := st.OpenTag(ctx, ref, cow.Options{Log: log, ForceShare: forceShare})
		if err != nil {
			return nil, explain(explainLimits(err)) // not a nil *Reading in an interface
		}
		return r, nil
	}
}
