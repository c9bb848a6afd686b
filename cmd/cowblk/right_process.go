package main

import (
	"context"
	"fmt"
	"os"
	"slices"

	"cowblk/backend/control"
	"cowblk/backend/daemon"
	"cowblk/cow/store"
)

// reach dials the control socket at path, which the lock files of the disks name, and refuses a process that serves disks
// of those names from another store: what it is told to do would be done to them.
func reach(ctx context.Context, st *store.Store, path string, names []string) (*control.Client, error) {
	c, err := control.Dial(path, queryTimeout)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, queryTimeout)
	defer cancel()
	var disks []daemon.DiskInfo
	if err := c.Run(ctx, "query-cow-disks", daemon.DisksArgs{Store: true}, &disks); err != nil {
		return c, nil // the command itself says what is wrong with the process
	}
	return c, rightStore(st, path, disks, names)
}

// rightStore refuses the answer of a process to query-cow-disks if one of the disks is another store's.
func rightStore(st *store.Store, path string, disks []daemon.DiskInfo, names []string) error {
	for _, d := range disks {
		if slices.Contains(names, d.Name) && otherStore(st, &d) {
			return fmt.Errorf("disk %q: expected a process that serves it from store %s, found one on control socket %s that serves it from store %s: %w\nname the store that is meant with --store",
				d.Name, st.Dir(), store.PathText(path), store.PathText(d.Store), store.ErrRefused)
		}
	}
	return nil
}

// otherStore reports whether a served disk is surely another store's. A process of an earlier version does not tell, and
// one in another mount namespace may know the store by a path that is none here.
func otherStore(st *store.Store, d *daemon.DiskInfo) bool {
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
