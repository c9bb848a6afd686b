package main

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"

	"cowblk/cow"
	"cowblk/cow/finding"
	"cowblk/cow/imagefile"
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

// openRaw opens a raw file or block device as a disk without layers.
func openRaw(path string, f *serveFlags, log *slog.Logger) (*openDisk, error) {
	path, err := filepath.Abs(path) // advice in messages may be typed elsewhere
	if err != nil {
		return nil, fmt.Errorf("--blk-file: %w", err)
	}
	if dir := store.StoreOf(path); dir != "" && !f.readOnly {
		return nil, finding.New(nil, path, "--blk-file", "a file outside any store",
			"a file of "+dir,
			"serve the disk that lies on it, or a copy; --read-only serves the file as it is")
	}
	word := "--format raw"
	if f.blkFormat == imagefile.Raw {
		word = ""
	}
	if err := imagefile.CheckRaw(path, word); err != nil {
		return nil, fmt.Errorf("--blk-file: %w", err)
	}
	spec := cow.Spec{Base: &cow.BaseSpec{Path: path}, ReadOnly: f.readOnly, Raw: !f.readOnly}
	disk, err := cow.Open(spec, f.data.cowOptions(log))
	if err != nil {
		return nil, fmt.Errorf("--blk-file: %w", store.Classify(err))
	}
	return &openDisk{name: filepath.Base(path), disk: disk, close: disk.Close}, nil
}
