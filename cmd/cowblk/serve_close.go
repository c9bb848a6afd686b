package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"cowblk/cow"
)

// On a full file system there may be no space for the maps of disks that are to be closed, not even in the store's
// reserve. A process that is to end waits so long for some, for all of its disks together.
const (
	closeWait  = 10 * time.Second
	closeRetry = 200 * time.Millisecond
)

func (s *serving) close() error {
	var errs []error
	end := time.Now().Add(closeWait)
	for _, o := range s.disks {
		o.waitForSpace(s.log, end)
		errs = append(errs, o.finish())
	}
	return errors.Join(errs...)
}

// waitForSpace returns when the disk's map is written, or cannot be, or at the time end. A signal ends the process then.
func (o *openDisk) waitForSpace(log *slog.Logger, end time.Time) {
	for logged := false; ; time.Sleep(closeRetry) {
		err := o.disk.Finish()
		left := time.Until(end)
		if err == nil || !cow.NoSpace(err) || left <= 0 {
			return
		}
		if !logged {
			logged = true
			// Whatever has begun the end, the first signal from now on ends the process.
			signal.Reset(os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
			log.Error("a disk cannot be closed yet, because there is no space for its map: make some. After some time, or a signal, the process ends without that",
				"disk", o.name, "waits", left.Round(time.Second), "then", unwrittenText(o.disk), "err", err)
		}
	}
}

// finish closes the disk, and says what it means when its map could not be written.
func (o *openDisk) finish() error {
	then := unwrittenText(o.disk)
	err := o.close()
	if err == nil || !cow.NoSpace(err) {
		return err
	}
	return fmt.Errorf("disk %q is closed, and its map could not be written: %w\n%s", o.name, err, then)
}

// unwrittenText says what becomes of what a guest has written when its disk is closed and the map is not written.
func unwrittenText(d *cow.Disk) string {
	if d.KeepsUnflushed() {
		return "nothing is lost as long as this kernel runs and the file system stays mounted: the next process that serves the disk has all that was written. " +
			"A power cut, a reboot or an unmount loses what was not flushed: make space before, serve the disk, stop it"
	}
	return "what the guest has written to new blocks and not flushed is lost (--lose-unflushed)"
}
