package main

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"cowblk/cow/store"
)

// What one process has open besides layers: sockets, eventfds of many queues, images, locks. An estimate on the safe
// side for a few disks.
const descriptorsBesides = 48

// checkDescriptors refuses disks with more layers than this process may have files open for, before one is opened. A
// sealed layer keeps two: its map, whose lock shows others that it is in use, and its data. Go has raised the soft
// limit to the hard one when the process started (package os).
func checkDescriptors(st *store.Store, names []string) error {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return fmt.Errorf("limit of open files: %w", err)
	}
	layers := 0
	for _, name := range names {
		m, err := st.Disk(name)
		if err != nil {
			return err
		}
		layers += len(m.Layers)
	}
	if need := uint64(2*layers + descriptorsBesides); need > limit.Cur {
		return fmt.Errorf("%d layers need about %d open files, this process may have %d\n%s", layers, need, limit.Cur, descriptorAdvice)
	}
	return nil
}

const descriptorAdvice = "raise the limit: ulimit -Hn in the shell that starts it, LimitNOFILE= in its systemd unit"

// explainDescriptors adds what to do to an error that came of too many open files: one of a command, or one that a
// daemon reports.
func explainDescriptors(err error) error {
	if errors.Is(err, unix.EMFILE) {
		return fmt.Errorf("%w\n%s", err, descriptorAdvice)
	}
	return err
}
