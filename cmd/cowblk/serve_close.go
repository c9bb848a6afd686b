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

// On a full file system, closing a disk may find no space for its map, even with the store's
// reserve. Close then waits for space, closeWait for all disks of the process together.
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

// waitForSpace returns when the disk's map is written, at an error other than ENOSPC, or at the
// time end. A signal meanwhile ends the process.
func (o *openDisk) waitForSpace(log *slog.Logger, end time.Time) {
	for logged := false; ; time.Sleep(closeRetry) {
		err := o.disk.Finish()
		left := time.Until(end)
		if err == nil || !cow.NoSpace(err) || left <= 0 {
			return
		}
		if !logged {
			logged = true
			// From now on the first signal ends the process.
			signal.Reset(os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
			log.Error("no space to write a disk's map before closing it: make space. At the time limit, or at a signal, the process ends without it",
				"disk", o.name, "waits", left.Round(time.Second), "then", unwrittenText(o.disk), "err", err)
		}
	}
}

// finish closes the disk. Its error says which data is at risk if the map could not be written.
func (o *openDisk) finish() error {
	then := unwrittenText(o.disk)
	err := o.close()
	if err == nil || !cow.NoSpace(err) {
		return err
	}
	return fmt.Errorf("disk %q is closed, and its map could not be written: %w\n%s", o.name, err, then)
}

// unwrittenText says which written data survives when a disk is closed without its map.
func unwrittenText(d *cow.Disk) string {
	if d.KeepsUnflushed() {
		return "nothing is lost while this kernel runs and the file system stays mounted: the next process that serves the disk has all written data. " +
			"A power cut, a reboot or an unmount loses what was not flushed: make space before, serve the disk, stop it"
	}
	return "unflushed writes of the guest to new blocks are lost (--lose-unflushed)"
}
