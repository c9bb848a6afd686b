package cow

import (
	"errors"

	"golang.org/x/sys/unix"
)

// inNeed runs f, which loses nothing when it finds no space, and again for as long as room is made.
func (d *Disk) inNeed(f func() error) error {
	for {
		err := f()
		if err == nil || d.makeRoom == nil || !NoSpace(err) || !d.makeRoom(err, d.closing.Load()) {
			return err
		}
	}
}

// NoSpace reports whether an error says that the file system, or the user's share of it, is full, and nothing was lost:
// the same may succeed later.
func NoSpace(err error) bool {
	return (errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)) && !errors.Is(err, ErrFailed)
}

// Finish is a flush after which the disk is closed: all room may be used up that was kept for that, see
// Options.MakeRoom. It may be repeated. nil where nothing is written.
func (d *Disk) Finish() error {
	d.BeginClose()
	return d.Flush()
}

// BeginClose lets all flushes from now on use up the room that Finish may. For whoever flushes by a channel of its own.
func (d *Disk) BeginClose() { d.closing.Store(true) }

// KeepsUnflushed reports whether the next Open in this run of the kernel finds all that guests have written, flushed or
// not, when this process ends without having written the map: by the shared map, or because no write completes before
// its bit is durable.
func (d *Disk) KeepsUnflushed() bool {
	b := d.view.Load().bitmap
	return b == nil || b.Shared() || !d.loseUnflushed
}
