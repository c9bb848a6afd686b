package main

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"cowblk/backend/sandbox"
	"cowblk/cow/store"
	"cowblk/cow/vfs"
)

// sandboxFlags holds the options of "cowblk serve" for confinement.
type sandboxFlags struct {
	mode sandbox.Mode
}

func (f *sandboxFlags) register(cmd *cobra.Command) {
	cmd.Flags().TextVar(&f.mode, "sandbox", sandbox.On, "confine the process to the store's files once its disks are open: on, as far as\nthis kernel can; require, or fail; off")
	_ = cmd.RegisterFlagCompletionFunc("sandbox", cobra.FixedCompletions([]cobra.Completion{"off", "on", "require"}, cobra.ShellCompDirectiveNoFileComp))
}

// lookupFiles are read to resolve the host name of an NBD address and the group of a socket.
var lookupFiles = []string{"/etc/hosts", "/etc/resolv.conf", "/etc/nsswitch.conf", "/etc/group"}

// confine restricts the process, irrevocably, to what serving needs. Everything elsewhere must be
// open already.
func (a *app) confine(s *serving, st *store.Store, f *sandboxFlags, log *slog.Logger) error {
	if f.mode == sandbox.Off {
		return nil
	}
	rules := sandbox.Rules{
		// systemd's socket for READY=1.
		Abstract: strings.HasPrefix(a.getenv("NOTIFY_SOCKET"), "@"),
	}
	if st != nil {
		// Read before the confinement, for promotions.
		if _, err := (vfs.OS{}).Boot(); err != nil {
			log.Warn("the kernel's boot ID cannot be read: unflushed writes are lost if this process is killed", "err", err)
		}
		var manifests []*store.Manifest
		for _, o := range s.disks {
			manifests = append(manifests, o.manifest)
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
		if s.control != nil {
			for _, l := range s.control.Listeners() {
				dirs = append(dirs, filepath.Dir(l.Path())) // to remove the socket at the end
			}
		}
		for _, dir := range dirs {
			if info, err := os.Stat(dir); err == nil && info.IsDir() {
				rules.Sockets = append(rules.Sockets, dir)
			}
		}
	}
	done, err := sandbox.Confine(f.mode, rules)
	switch {
	case errors.Is(err, sandbox.ErrUnsupported):
		return fmt.Errorf("--sandbox require: %w: use another kernel, or --sandbox on, which applies what this one supports", err)
	case err != nil:
		return fmt.Errorf("--sandbox %s: %w", f.mode, err)
	case done.ABI == 0:
		log.Warn("the process is not confined, apart from no_new_privs", "reason", done.Reason)
	default:
		log.Info("confined to the store's files", "landlock", done.ABI, "not_denied_by_this_kernel", done.Missing)
	}
	return nil
}

// explainer returns a function that adds advice to an error that the confinement may have caused.
func (f *sandboxFlags) explainer(st *store.Store) func(error) error {
	return func(err error) error {
		if f.mode == sandbox.Off || !errors.Is(err, fs.ErrPermission) {
			return err
		}
		return fmt.Errorf("%w: this process is confined (serve --sandbox): it can make sockets in %s only, and outside the store it can read only the bases of its disks",
			err, st.RunDir())
	}
}
