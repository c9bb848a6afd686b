package daemon

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"

	"cowblk/backend/control"
	"cowblk/backend/nbd"
	"cowblk/backend/qmp"
	"cowblk/backend/takeover"
)

// groupMay has every command of the control socket, and whether members of its group may give it.
// Others are the owner's and root's: a new command is closed until it is added here.
// docs/control.md lists them for users.
//
// What the group may do through a command is limited below: members may not have this process
// connect to an address of their choice, make sockets outside the run directory or on a network, or
// read what it does not serve. The owner of the process and root may.
var groupMay = map[string]bool{
	"query-cow-disks":   true,
	"query-cow-stats":   true,
	"query-cow-space":   true,
	"query-cow-exports": true,
	"cow-promote":       true, // see checkReach
	"cow-set":           true,
	"cow-resume":        true,
	"cow-forget-guest":  true,
	"cow-attach":        true, // see checkReach
	"cow-detach":        true,
	"nbd-server-start":  true, // see checkStart
	"nbd-server-stop":   true,
	"cow-export-add":    true, // see checkAdd
	"cow-export-del":    true,
	"quit":              true,
	takeover.Command:    false,
}

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
