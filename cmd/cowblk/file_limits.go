package main

import (
	"errors"
	"fmt"
	"log/slog"

	"golang.org/x/sys/unix"

	"cowblk/cow/store"
)

// What a serving process has open, counted in /proc/PID/fd (TestDescriptorsNeeded).
const (
	// descriptorsProcess: standard streams, epoll and its eventfd, cgroup limits, the control socket and its directory.
	descriptorsProcess = 12
	// descriptorsReserve: a promotion's new layer and manifests, a control client or two, a command that reads the store.
	descriptorsReserve = 16
	// descriptorsDisk: its lock, what is kept of unflushed writes, socket, the socket's directory, flusher.
	descriptorsDisk = 5
	// descriptorsLayer: a map, whose lock shows others that it is in use, and data.
	descriptorsLayer = 2
	// descriptorsBase: an image or a file in place.
	descriptorsBase = 1
	// descriptorsFrontEnd: the connection, the channel for messages to the front-end, one that waits, in-flight buffer.
	descriptorsFrontEnd = 4
	// descriptorsQueue: kick, call and error eventfds, once the session's and once the worker's, its wake-up, completions.
	descriptorsQueue = 8
)

// descriptorsNeeded is how many files a process has open that serves disks with so many layers in all, each to a front-end with so
// many queues.
func descriptorsNeeded(disks, layers, queues int) uint64 {
	disk := descriptorsDisk + descriptorsBase + descriptorsFrontEnd + queues*descriptorsQueue
	return uint64(descriptorsProcess + descriptorsReserve + disks*disk + layers*descriptorsLayer)
}

// checkDescriptors refuses disks that need more open files than this process may have, before one is opened: front-ends
// with one queue each must find room. Where all queues of all disks would not, it warns. Go has raised the soft limit to
// the hard one when the process started (package os).
func checkDescriptors(st *store.Store, names []string, queues int, log *slog.Logger) error {
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
	if need := descriptorsNeeded(len(names), layers, 1); need > limit.Cur {
		return fmt.Errorf("%d disks with %d layers need about %d open files, this process may have %d\n%s", len(names), layers, need, limit.Cur, descriptorAdvice)
	}
	if need := descriptorsNeeded(len(names), layers, queues); need > limit.Cur {
		log.Warn("guests that use all queues of all disks need more open files than this process may have", "queues", queues, "need", need, "limit", limit.Cur, "advice", descriptorAdvice)
	}
	return nil
}

// A disk's data is one file of the disk's size, with holes.
const fileSizeAdvice = "this is the file system's limit for one file, which a disk's data is: 16 TiB on ext4. Put the store on XFS, whose files may have 8 EiB, or make the disk smaller"

const descriptorAdvice = "raise the limit: ulimit -Hn in the shell that starts it, LimitNOFILE= in its systemd unit"

// explainLimits adds what to do to an error that came of too many open files, or of a file that is too large: one of a
// command, or one that a daemon reports.
func explainLimits(err error) error {
	switch {
	case errors.Is(err, unix.EMFILE):
		return fmt.Errorf("%w\n%s", err, descriptorAdvice)
	case errors.Is(err, unix.EFBIG):
		return fmt.Errorf("%w\n%s", err, fileSizeAdvice)
	}
	return err
}
