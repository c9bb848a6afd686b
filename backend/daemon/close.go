package daemon

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"cowblk/cow"
)

// On a full file system, closing a disk may find no space for its map, even with the store's
// reserve. Close then waits for space, closeWait for all disks of the process together.
const (
	closeWait  = 10 * time.Second
	closeRetry = 200 * time.Millisecond
)

// Close closes the disks, after Run has returned. On a full file system it waits for space for some
// seconds. Its error says which data is at risk.
func (d *Daemon) Close() error {
	var errs []error
	end := time.Now().Add(closeWait)
	for _, e := range d.exports {
		if e.detached {
			continue
		}
		d.waitForSpace(e, end)
		errs = append(errs, e.finish())
	}
	return errors.Join(errs...)
}

// closeFailed closes everything after a failed start, and returns why with the errors of that. It
// leaves the disks of a takeover as the old process detached them.
func (d *Daemon) closeFailed(why error) error {
	errs := []error{why}
	if d.control != nil {
		errs = append(errs, d.control.Close())
	}
	for _, e := range d.exports {
		errs = append(errs, e.closeSocket())
	}
	if d.old == nil {
		return errors.Join(append(errs, d.Close())...)
	}
	for _, e := range d.exports {
		_, err := e.detach()
		errs = append(errs, err)
	}
	err := errors.Join(errs...)
	d.old.abort(err)
	return err
}

// waitForSpace returns when the disk's map is written, at an error other than ENOSPC, or at the
// time end. A signal meanwhile ends the process.
func (d *Daemon) waitForSpace(e *Export, end time.Time) {
	for logged := false; ; time.Sleep(closeRetry) {
		err := e.opened.Disk.Finish()
		left := time.Until(end)
		if err == nil || !cow.NoSpace(err) || left <= 0 {
			return
		}
		if !logged {
			logged = true
			// From now on the first signal ends the process.
			signal.Reset(os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
			d.log.Error("no space to write a disk's map before closing it: make space. At the time limit, or at a signal, the process ends without it",
				"disk", e.name, "waits", left.Round(time.Second), "then",
				unwrittenText(e.opened.Disk), "err", err)
		}
	}
}

// finish closes the disk and releases its lock. Its error says which data is at risk if the map
// could not be written.
func (e *Export) finish() error {
	then := unwrittenText(e.opened.Disk)
	closeDisk := e.opened.Close
	if e.opened.Lock == nil {
		closeDisk = e.opened.Disk.Close
	}
	err := closeDisk()
	if err == nil || !cow.NoSpace(err) {
		return err
	}
	return fmt.Errorf("disk %q is closed, and its map could not be written: %w\n%s", e.name, err,
		then)
}

// unwrittenText says which written data survives when a disk is closed without its map.
func unwrittenText(d *cow.Disk) string {
	if d.KeepsUnflushed() {
		return "nothing is lost while this kernel runs and the file system stays mounted: the next process that serves the disk has all written data. " +
			"A power cut, a reboot or an unmount loses what was not flushed: make space before, serve the disk, stop it"
	}
	return "unflushed writes of the guest to new blocks are lost (--lose-unflushed)"
}
