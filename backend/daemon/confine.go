package daemon

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"cowblk/backend/sandbox"
	"cowblk/cow/store"
	"cowblk/cow/vfs"
)

// lookupFiles are read to resolve the host name of an NBD address and the group of a socket.
var lookupFiles = []string{"/etc/hosts", "/etc/resolv.conf", "/etc/nsswitch.conf", "/etc/group"}

// confine restricts the process, irrevocably, to what serving needs. Everything elsewhere must be
// open already.
func (d *Daemon) confine() error {
	mode, st := d.opts.Sandbox, d.opts.Store
	if mode == sandbox.Off {
		return nil
	}
	rules := sandbox.Rules{
		// systemd's socket for READY=1.
		Abstract: strings.HasPrefix(os.Getenv("NOTIFY_SOCKET"), "@"),
	}
	if st != nil {
		// Read before the confinement, for promotions.
		if _, err := (vfs.OS{}).Boot(); err != nil {
			d.log.Warn("the kernel's boot ID cannot be read: unflushed writes are lost if this process is killed", "err", err)
		}
		var manifests []*store.Manifest
		for _, e := range d.exports {
			manifests = append(manifests, e.opened.Manifest)
		}
		access, err := st.Access(manifests)
		if err != nil {
			return err
		}
		rules.Change, rules.Write = access.Change, access.Write
		for _, dir := range st.SharedDirs() {
			// Only directories that exist for this user.
			if info, err := os.Stat(dir); err == nil && info.IsDir() {
				rules.Change = append(rules.Change, dir)
			}
		}
		rules.Read = append(access.Read, lookupFiles...)
		dirs := []string{st.RunDir(), st.OtherRunDir()}
		for _, l := range d.control.Listeners() {
			dirs = append(dirs, filepath.Dir(l.Path())) // to remove the socket at the end
		}
		for _, dir := range dirs {
			if info, err := os.Stat(dir); err == nil && info.IsDir() {
				rules.Sockets = append(rules.Sockets, dir)
			}
		}
	}
	done, err := sandbox.Confine(mode, rules)
	switch {
	case errors.Is(err, sandbox.ErrUnsupported):
		return fmt.Errorf("--sandbox require: %w: use another kernel, or --sandbox on, which applies what this one supports", err)
	case err != nil:
		return fmt.Errorf("--sandbox %s: %w", mode, err)
	case done.ABI == 0:
		d.log.Warn("the process is not confined, apart from no_new_privs", "err", done.Reason)
	default:
		d.log.Info("confined to the store's files", "landlock", done.ABI,
			"not_denied_by_this_kernel", strings.Join(done.Missing, ", "))
	}
	return nil
}

// explainConfined adds advice to an error that the confinement may have caused.
func (d *Daemon) explainConfined(err error) error {
	if d.opts.Sandbox == sandbox.Off || !errors.Is(err, fs.ErrPermission) {
		return err
	}
	return fmt.Errorf("%w: this process is confined (serve --sandbox): it can make sockets in %s only, and outside the store it can read only the bases of its disks",
		err, d.opts.Store.RunDir())
}
