package daemon

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"

	"cowblk/backend/control"
	"cowblk/backend/nbd"
	"cowblk/backend/qmp"
)

// Members of the control socket's group may not have this process connect to an address of their
// choice, make sockets outside the run directory or on a network, or read what it does not serve.
// The owner of the process and root may.

// checkReach refuses addresses that the process was not started with.
func (d *Daemon) checkReach(ctx context.Context, s *qmp.Spec) error {
	own := d.space.guest
	switch {
	case s.Agent != "":
		return control.OwnerOnly(ctx, "guest agent at "+s.Agent)
	case (s.Libvirt != "" || s.Domain != "") && (s.Libvirt != own.Libvirt ||
		s.Domain != own.Domain):
		return control.OwnerOnly(ctx,
			fmt.Sprintf("libvirt at %s, domain %q, which this process was not started with (--libvirt, --domain)", s.Libvirt, s.Domain))
	case s.QMP != "" && d.monitorFor(s.QMP) == nil:
		return control.OwnerOnly(ctx,
			fmt.Sprintf("QEMU's monitor at %s, which this process was not started with (--qmp)",
				s.QMP))
	}
	return nil
}

// serves reports whether this process serves the disk.
func (d *Daemon) serves(disk string) bool {
	for _, e := range d.snapshot() {
		if e.dev.Name() == disk {
			return true
		}
	}
	return false
}

// socketSuffix ends the names of NBD sockets that the group may create, so that none takes the
// place of a disk's socket.
const socketSuffix = ".nbd"

// checkStart refuses addresses outside the run directory.
func (r *nbdExports) checkStart(ctx context.Context, at nbd.Address) error {
	dir := r.daemon.opts.Store.RunDir()
	if at.Network == "unix" && at.Path == filepath.Join(dir, filepath.Base(at.Path)) &&
		strings.HasSuffix(at.Path, socketSuffix) {
		return nil
	}
	return control.OwnerOnly(ctx, fmt.Sprintf("NBD server at %s (others: unix:%s)", at,
		filepath.Join(dir, "NAME"+socketSuffix)))
}

// checkAdd refuses disks that the process does not serve, and exports to a network.
func (r *nbdExports) checkAdd(ctx context.Context, name string) error {
	disk, _, _ := strings.Cut(name, "@")
	if !r.daemon.serves(disk) {
		return control.OwnerOnly(ctx,
			fmt.Sprintf("export of %q, a disk that this process does not serve", name))
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.server == nil {
		return nil
	}
	for _, a := range r.server.Addresses() {
		if a.Network != "unix" {
			return control.OwnerOnly(ctx, fmt.Sprintf("export of %q on %s", name, a))
		}
	}
	return nil
}
