package main

import (
	"context"
	"fmt"
	"os"
	"slices"

	"cowblk/backend/control"
	"cowblk/backend/daemon"
	"cowblk/cow/shell"
	"cowblk/cow/store"
)

// dialServing dials the control socket at path, which the lock files of the disks name. It refuses
// a process that serves disks of these names from another store: a command would change those
// disks.
func dialServing(ctx context.Context, st *store.Store, path string, names []string) (*control.Client, error) {
	c, err := control.Dial(path, queryTimeout)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, queryTimeout)
	defer cancel()
	var disks []daemon.DiskInfo
	if err := c.Run(ctx, "query-cow-disks", daemon.DisksArgs{Store: true}, &disks); err != nil {
		return c, nil // the command itself reports the error of the process
	}
	return c, checkServedStore(st, path, disks, names)
}

// checkServedStore refuses the answer of a process to query-cow-disks if one of the disks belongs
// to another store.
func checkServedStore(st *store.Store, path string, disks []daemon.DiskInfo, names []string) error {
	for _, d := range disks {
		if slices.Contains(names, d.Name) && servesOtherStore(st, &d) {
			return fmt.Errorf("disk %q: expected a process that serves it from store %s, found one on control socket %s that serves it from store %s: %w\nname the store that is meant with --store",
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
