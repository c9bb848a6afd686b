package main

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"

	"cowblk/cow"
	"cowblk/cow/store"
)

// openDisk is an open disk that is to be served: one of a store, with its lock, or a raw file.
type openDisk struct {
	name string
	disk *cow.Disk
	lock *store.Lock // nil: a raw file
	// manifest is as read when the disk was opened; nil: a raw file.
	manifest *store.Manifest
	close    func() error
	serving  store.Serving // recorded in its lock
}

// openStored opens a disk of the store. A tag (vm1@tag) is not a disk; it can only be read through
// a clone.
func openStored(ctx context.Context, st *store.Store, name string, f *serveFlags, log *slog.Logger) (*openDisk, error) {
	o, err := st.OpenDisk(ctx, name, store.OpenOptions{ReadOnly: f.readOnly, Serve: true, Cow: f.data.cowOptions(log)})
	if err != nil {
		return nil, err
	}
	return &openDisk{name: name, disk: o.Disk, lock: o.Lock, manifest: o.Manifest, close: o.Close}, nil
}

// openRaw opens a raw file or block device as a disk without layers. st is the user's store; nil:
// there is none.
func openRaw(st *store.Store, path string, f *serveFlags, log *slog.Logger) (*openDisk, error) {
	path, err := filepath.Abs(path) // advice in messages may be typed elsewhere
	if err != nil {
		return nil, fmt.Errorf("--blk-file: %w", err)
	}
	if !f.readOnly {
		if err := store.CheckWritable(st, path); err != nil {
			return nil, fmt.Errorf("--blk-file: %w", err)
		}
	}
	word := "--format raw"
	if f.blkFormat == store.FormatRaw {
		word = ""
	}
	if err := store.CheckRaw(nil, path, word); err != nil {
		return nil, fmt.Errorf("--blk-file: %w", err)
	}
	spec := cow.Spec{Base: &cow.BaseSpec{Path: path}, ReadOnly: f.readOnly, Raw: !f.readOnly}
	disk, err := cow.Open(spec, f.data.cowOptions(log))
	if err != nil {
		return nil, fmt.Errorf("--blk-file: %w", store.Classify(err))
	}
	return &openDisk{name: filepath.Base(path), disk: disk, close: disk.Close}, nil
}
