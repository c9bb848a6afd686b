package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"cowblk/cow"
	"cowblk/cow/imagefile"
	"cowblk/cow/store"
)

// openStored opens a disk of the store. A tag (vm1@tag) is not a disk; it can only be read through
// a clone.
func (d *Daemon) openStored(ctx context.Context, name string) (*store.Opened, error) {
	o, err := d.opts.Store.OpenDisk(ctx, name, store.OpenOptions{ReadOnly: d.opts.Device.ReadOnly,
		Serve: true, Cow: d.opts.Cow})
	if err == nil {
		d.manifests.set(o.Manifest)
	}
	return o, err
}

// openRaw opens a raw file or block device as a disk without layers.
func (d *Daemon) openRaw() error {
	path, err := filepath.Abs(d.opts.File) // advice in messages may be typed elsewhere
	if err != nil {
		return fmt.Errorf("--blk-file: %w", err)
	}
	readOnly := d.opts.Device.ReadOnly
	if !readOnly {
		if err := store.CheckWritable(d.opts.UserStore, path); err != nil {
			return fmt.Errorf("--blk-file: %w", err)
		}
	}
	word := "--format raw"
	if d.opts.AnyContent {
		word = ""
	}
	if err := imagefile.CheckRaw(path, word); err != nil {
		return fmt.Errorf("--blk-file: %w", err)
	}
	disk, err := cow.Open(cow.Spec{Base: &cow.BaseSpec{Path: path}, ReadOnly: readOnly,
		Raw: !readOnly}, d.opts.Cow)
	if err != nil {
		return fmt.Errorf("--blk-file: %w", store.Classify(err))
	}
	d.exports = append(d.exports, &Export{name: filepath.Base(path),
		opened: &store.Opened{Disk: disk}})
	return nil
}

// detach closes the disk for another process to continue (cow.Disk.Detach), and releases its lock.
// If detached is false, nothing has changed.
func (e *Export) detach() (detached bool, err error) {
	if detached, err = e.opened.Disk.Detach(); !detached {
		return false, err
	}
	e.detached = true
	if e.opened.Lock != nil {
		err = errors.Join(err, e.opened.Lock.Unlock())
	}
	return true, err
}

// reopen undoes detach. errTaken: another process serves the disk.
func (d *Daemon) reopen(ctx context.Context, e *Export) error {
	opened, err := d.openStored(ctx, e.name)
	if errors.Is(err, store.ErrInUse) {
		if v, ok := d.opts.Store.Serving(e.name); ok && v.Socket != "" && v.PID != os.Getpid() {
			return fmt.Errorf("%w: %w", errTaken, err)
		}
	}
	if err != nil {
		return err
	}
	e.opened, e.detached = opened, false
	if err := opened.Lock.SetServing(e.serving); err != nil {
		d.log.Error("the disk is served again, but its lock does not record it", "disk", e.name,
			"err", err)
	}
	return nil
}
