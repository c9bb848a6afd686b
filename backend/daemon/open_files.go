package daemon

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// Open files of a serving process, counted in /proc/PID/fd (TestDescriptorsNeeded).
const (
	// descriptorsProcess counts standard streams, epoll and its eventfd, cgroup limits, the control
	// socket and its directory.
	descriptorsProcess = 12
	// descriptorsReserve counts a promotion's new layer and manifests, two control clients, and a
	// command that reads the store.
	descriptorsReserve = 16
	// descriptorsDisk counts the lock, the memory for unflushed writes, the socket, the socket's
	// directory and the flusher.
	descriptorsDisk = 5
	// descriptorsLayer counts the map, whose lock marks it as used, and the data.
	descriptorsLayer = 2
	// descriptorsBase counts an image or a base in place.
	descriptorsBase = 1
	// descriptorsFrontEnd counts the connection, the back-end channel, a pending connection and the
	// in-flight buffer.
	descriptorsFrontEnd = 4
	// descriptorsQueue counts kick, call and error eventfds, of the session and of the worker, the
	// worker's wake-up, and completions.
	descriptorsQueue = 8
)

// descriptorsNeeded returns the number of open files of a process that serves disks with a total of
// layers, each to a front-end with the given number of queues.
func descriptorsNeeded(disks, layers, queues int) uint64 {
	disk := descriptorsDisk + descriptorsBase + descriptorsFrontEnd + queues*descriptorsQueue
	return uint64(descriptorsProcess + descriptorsReserve + disks*disk + layers*descriptorsLayer)
}

// checkOpenFiles returns an error if the disks need more open files than this process may have with
// one queue for each disk. It logs a warning if all queues of all disks would need more. The soft
// limit is the hard limit: package os has raised it.
func (d *Daemon) checkOpenFiles() error {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return fmt.Errorf("limit of open files: %w", err)
	}
	layers, names, queues := 0, d.opts.Disks, d.opts.Device.Queues
	for _, name := range names {
		m, err := d.opts.Store.Disk(name)
		if err != nil {
			return err
		}
		layers += len(m.Layers)
	}
	if need := descriptorsNeeded(len(names), layers, 1); need > limit.Cur {
		return fmt.Errorf("%d disks with %d layers need about %d open files, this process may have %d\n%s", len(names), layers, need, limit.Cur, descriptorAdvice)
	}
	if need := descriptorsNeeded(len(names), layers, queues); need > limit.Cur {
		d.log.Warn("guests that use all queues of all disks need more open files than this process may have", "queues", queues, "need", need, "limit", limit.Cur, "advice", descriptorAdvice)
	}
	return nil
}

// A disk's data is one sparse file of the disk's size.
const fileSizeAdvice = "this is the file system's limit for one file, which a disk's data is: 16 TiB on ext4. Put the store on XFS, whose files may have 8 EiB, or make the disk smaller"

const descriptorAdvice = "raise the limit: ulimit -Hn in the shell that starts it, LimitNOFILE= in its systemd unit"

const readOnlyAdvice = "nothing can be written there: have the file system remounted, or use another store. A store on it can be listed, checked and exported, and served with --read-only"

// ExplainLimits adds advice to an error caused by the limit of open files or of the file size, or
// by a read-only file system unless the error has advice.
func ExplainLimits(err error) error {
	switch {
	case errors.Is(err, unix.EMFILE):
		return fmt.Errorf("%w\n%s", err, descriptorAdvice)
	case errors.Is(err, unix.EFBIG):
		var limit unix.Rlimit
		if unix.Getrlimit(unix.RLIMIT_FSIZE, &limit) == nil && limit.Cur != unix.RLIM_INFINITY {
			return fmt.Errorf(
				"%w\nthis process may make files of at most %d bytes (RLIMIT_FSIZE), and a disk's data is one file: raise that limit with ulimit -f unlimited in the shell that starts it, LimitFSIZE= in its systemd unit", err, limit.Cur)
		}
		return fmt.Errorf("%w\n%s", err, fileSizeAdvice)
	case errors.Is(err, unix.EROFS) && !strings.Contains(err.Error(), "\n"):
		return fmt.Errorf("%w\n%s", err, readOnlyAdvice)
	}
	return err
}
