package client

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"cowblk/backend/control"
	"cowblk/backend/daemon"
	"cowblk/cow/shell"
	"cowblk/cow/store"
)

// NotOneProcessError says that some of the disks are served by other processes than the rest, or
// are stopped. It wraps store.ErrInUse.
type NotOneProcessError struct {
	a, b             string
	aServed, bServed bool
}

func (e *NotOneProcessError) Error() string {
	switch {
	case !e.aServed:
		return fmt.Sprintf("disk %q is in use, served by a process, and disk %q is stopped", e.b,
			e.a)
	case !e.bServed:
		return fmt.Sprintf("disk %q is in use, served by a process, and disk %q is stopped", e.a,
			e.b)
	}
	return fmt.Sprintf("disks %q and %q are in use, and not served by one process", e.a, e.b)
}

func (e *NotOneProcessError) Unwrap() error { return store.ErrInUse }

// ControlSocket returns the control socket of the process that serves the disks, or "" if all are
// stopped. Errors: *NotOneProcessError, store.ErrInUse (opened by a process that does not serve
// it), and those of store.Disk and store.ServingError.
func ControlSocket(s *store.Store, names []string) (path string, err error) {
	for i, name := range names {
		if _, err := s.Disk(name); err != nil {
			return "", err
		}
		at := ""
		v, err := s.ServingError(name)
		if err != nil {
			return "", err
		}
		if v != nil {
			if at = v.Control; at == "" {
				return "", fmt.Errorf("disk %q is %w: %s", name, store.ErrInUse, v)
			}
		}
		if i > 0 && at != path {
			return "", &NotOneProcessError{names[0], name, path != "", at != ""}
		}
		path = at
	}
	return path, nil
}

// Dial connects to the control socket at path, which the locks of the disks name. ErrRefused: the
// process serves disks of these names from another store, which a command would change.
func Dial(ctx context.Context, st *store.Store, path string, names []string) (*control.Client,
	error) {
	c, err := control.Dial(path, QueryTimeout)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, QueryTimeout)
	defer cancel()
	var disks []daemon.DiskInfo
	if err := c.Run(ctx, "query-cow-disks", daemon.DisksArgs{Store: true}, &disks); err != nil {
		return c, nil // the command itself reports the error of the process
	}
	return c, CheckStore(st, path, disks, names)
}

// OldProcess returns the control socket of the process from which the disks can be taken over; "":
// no process serves them.
func OldProcess(ctx context.Context, st *store.Store, names []string) (path string, err error) {
	path, err = ControlSocket(st, names)
	var apart *NotOneProcessError
	if errors.As(err, &apart) {
		return "", fmt.Errorf(
			"takeover: %w: a process takes over the disks of one process; serve the others from another one", err)
	}
	if err != nil || path == "" {
		return "", err
	}
	// The takeover says more about a process that does not answer.
	if _, err := Dial(ctx, st, path, names); errors.Is(err, store.ErrRefused) {
		return "", fmt.Errorf("takeover: %w", err)
	}
	return path, nil
}

// CheckStore refuses the answer of a process to query-cow-disks if one of the disks belongs to
// another store.
func CheckStore(st *store.Store, path string, disks []daemon.DiskInfo, names []string) error {
	for _, d := range disks {
		if slices.Contains(names, d.Name) && servesOtherStore(st, &d) {
			return fmt.Errorf(
				"disk %q: expected a process that serves it from store %s, found one on control socket %s that serves it from store %s: %w\nname the store that is meant with --store",
				d.Name, st.Dir(), shell.Text(path), shell.Text(d.Store), store.ErrRefused)
		}
	}
	return nil
}

// servesOtherStore reports whether a served disk certainly belongs to another store. A process of
// an earlier version does not report its store. A process in another mount namespace may report a
// path that does not exist here.
func servesOtherStore(st *store.Store, d *daemon.DiskInfo) bool {
	if d.Store == "" || d.Store == st.Dir() {
		return false
	}
	theirs, err := os.Stat(d.Store)
	if err != nil {
		return false
	}
	ours, err := os.Stat(st.Dir())
	return err == nil && !os.SameFile(theirs, ours)
}
