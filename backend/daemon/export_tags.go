package daemon

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"syscall"

	sd "github.com/coreos/go-systemd/v22/daemon"

	"cowblk/backend/nbd"
	"cowblk/cow"
	"cowblk/cow/store"
)

// TagOptions says what ExportTags exports over NBD, and where.
type TagOptions struct {
	Log        *slog.Logger
	Store      *store.Store
	Refs       []store.Ref // tags, and disks that are stopped
	Addresses  []nbd.Address
	Group      string // may connect to UNIX sockets; empty: only the owner
	ForceShare bool   // see cow.Options.ForceShare
}

// ExportTags exports tags and stopped disks read-only until ctx is done. It opens all of them
// before the first socket exists, so that a client finds all. It calls started, then notifies
// systemd, when clients can connect.
func ExportTags(ctx context.Context, o TagOptions,
	started func([]nbd.ExportInfo) error) (err error) {
	server := nbd.New(nbd.Options{Log: o.Log, Group: o.Group})
	closers := []func() error{}
	defer func() {
		err = errors.Join(err, server.Close()) // before the disks that its clients read
		for _, c := range closers {
			err = errors.Join(err, c())
		}
	}()
	for _, ref := range o.Refs {
		r, err := o.Store.OpenTag(ctx, ref, cow.Options{Log: o.Log, ForceShare: o.ForceShare})
		if err != nil {
			return err
		}
		closers = append(closers, r.Close)
		if err := server.AddExport(ref.String(), r); err != nil {
			return err
		}
	}
	for _, at := range o.Addresses {
		bound, err := listenWithReserve(o.Store, server, at)
		if err != nil {
			return err
		}
		if reachable(bound) {
			o.Log.Warn("anyone who can reach this port can read all exports: NBD has neither encryption nor authentication here", "address", bound.String())
		}
	}
	if err := started(server.Exports()); err != nil {
		return err
	}
	if _, err := sd.SdNotify(false, sd.SdNotifyReady); err != nil {
		o.Log.Warn("cannot notify systemd of readiness", "err", err)
	}
	<-ctx.Done()
	o.Log.Info("stopping")
	_, _ = sd.SdNotify(false, sd.SdNotifyStopping)
	return nil
}

// reachable reports whether users of other machines may be able to connect.
func reachable(at nbd.Address) bool {
	if at.Network != "tcp" || at.Host == "localhost" {
		return false
	}
	ip := net.ParseIP(at.Host)
	return ip == nil || !ip.IsLoopback()
}

// listenWithReserve is server.Listen. On a full file system a UNIX socket may use the space reserve
// of a store on the same file system.
func listenWithReserve(st *store.Store, server *nbd.Server, at nbd.Address) (bound nbd.Address,
	err error) {
	if at.Network != "unix" || !sameDevice(st.Dir(), filepath.Dir(at.Path)) {
		return server.Listen(at)
	}
	err = st.WithReserve(func() error {
		bound, err = server.Listen(at)
		return err
	})
	return bound, err
}

func sameDevice(a, b string) bool {
	var dev [2]uint64
	for i, path := range []string{a, b} {
		fi, err := os.Stat(path)
		if err != nil {
			return false
		}
		st, ok := fi.Sys().(*syscall.Stat_t)
		if !ok {
			return false
		}
		dev[i] = st.Dev
	}
	return dev[0] == dev[1]
}
