package main

import (
	"context"
	"fmt"
	"path/filepath"

	"github.com/spf13/cobra"

	"cowblk/backend/control"
	"cowblk/backend/daemon"
	"cowblk/backend/nbd"
	"cowblk/cow/shell"
	"cowblk/cow/store"
)

// exportFlags holds the options of "cowblk export".
type exportFlags struct {
	listen []string
	group  string

	forceShare bool // see cow.Options.ForceShare
}

// exportInfo is the JSON output for one export.
type exportInfo struct {
	Name string   `json:"name"`
	Size int64    `json:"size"` // bytes
	URIs []string `json:"uris"` // one for each listener
}

func newExport(a *app) *cobra.Command {
	var f exportFlags
	cmd := &cobra.Command{
		Use:   "export NAME[@TAG]... --listen ADDRESS",
		Short: "Export tags read-only over NBD: backups while the guest runs",
		Long: `Export tags, or stopped disks, read-only over NBD (Network Block Device), in the foreground, until
SIGTERM or Ctrl-C. The command prints URIs for NBD clients: nbdinfo, nbdcopy, qemu-img and others.

A tag can be read while its disk is served, promoted or even removed. A disk without a tag must be
stopped, and cannot be started until the export ends.

ADDRESS is one of these, and --listen may be given several times:
  unix:PATH         a UNIX socket, mode 0600; --socket-group lets a group connect too
  tcp:PORT          a TCP port on the loopback interface, 127.0.0.1; 0: any free port
  tcp:HOST:PORT     a TCP port on another address; IPv6 addresses in brackets, 0.0.0.0: all addresses
  vsock:CID:PORT    a port for guests of this machine (AF_VSOCK); CID "any": all CIDs of this machine

NBD has neither encryption nor authentication here: anyone who can connect to a TCP or vsock port can
read all exports. Over a network, use a tunnel, such as ssh -L, to a port on 127.0.0.1.`,
		Example: `  cowblk promote vm1 --tag monday
  cowblk export vm1@monday --listen unix:/tmp/vm1.nbd
  nbdcopy 'nbd+unix:///vm1@monday?socket=/tmp/vm1.nbd' backup.raw

  cowblk export vm1@monday vm2@monday --listen tcp:10809
  qemu-img convert -O qcow2 nbd://127.0.0.1:10809/vm1@monday backup.qcow2`,
		Args:                  minArgs(1, "NAME"),
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
	fl.StringVar(&f.group, "socket-group", "",
		"let `GROUP` connect to the UNIX sockets too (mode 0660)")
	fl.BoolVar(&f.forceShare, "force-share", false, forceShareHelp)
	return cmd
}

func (f *exportFlags) check(args []string) (refs []store.Ref, addresses []nbd.Address, err error) {
	if len(f.listen) == 0 {
		return nil, nil, usagef(
			"export: --listen is missing: the address that clients connect to, such as --listen %s",
			shell.Word("unix:/tmp/"+args[0]+".nbd"))
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

// export serves until ctx is done.
func (a *app) export(ctx context.Context, refs []store.Ref, addresses []nbd.Address,
	f *exportFlags) (err error) {
	o := daemon.TagOptions{Log: a.serveLogger(), Refs: refs, Addresses: addresses, Group: f.group,
		ForceShare: f.forceShare}
	if o.Store, err = a.openTrusted(); err != nil {
		return err
	}
	return daemon.ExportTags(ctx, o, a.printExports)
}

func (a *app) printExports(exports []nbd.ExportInfo) error {
	infos := []exportInfo{}
	for _, e := range exports {
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
