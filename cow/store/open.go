package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strconv"
	"time"

	"github.com/google/uuid"

	"cowblk/cow"
	"cowblk/cow/layer"
	"cowblk/cow/vfs"
)

// OpenOptions for OpenDisk; the zero value opens for writing.
type OpenOptions struct {
	// Cow is handed to cow.Open; its FS and Log are the store's if nil.
	Cow cow.Options
	// ReadOnly opens the head for reading too.
	ReadOnly bool
}

// Opened is an open disk and the right to it.
type Opened struct {
	Disk     *cow.Disk
	Manifest *Manifest
	Lock     *Lock
}

// Close closes the disk, then gives up the lock.
func (o *Opened) Close() error { return errors.Join(o.Disk.Close(), o.Lock.Unlock()) }

// OpenDisk takes the disk's lock, checks its base and its layers, and opens the stack. A refused open has changed
// nothing. Errors: ErrNotFound, ErrInUse (names the process), ErrRefused, the context's (an image may have to be
// hashed again).
func (s *Store) OpenDisk(ctx context.Context, name string, o OpenOptions) (*Opened, error) {
	lock, err := s.LockDisk(name)
	if err != nil {
		return nil, err
	}
	if err := s.settle(ctx); err != nil {
		return nil, errors.Join(err, lock.Unlock())
	}
	m, err := s.Disk(name)
	if err == nil {
		var disk *cow.Disk
		if disk, err = s.openStack(ctx, m, o); err == nil {
			return &Opened{Disk: disk, Manifest: m, Lock: lock}, nil
		}
	}
	return nil, errors.Join(err, lock.Unlock())
}

// openStack opens what a manifest describes. The disk's lock is held.
func (s *Store) openStack(ctx context.Context, m *Manifest, o OpenOptions) (*cow.Disk, error) {
	if o.Cow.FS == nil {
		o.Cow.FS = s.fs
	}
	if o.Cow.Log == nil {
		o.Cow.Log = s.log
	}
	base, err := s.baseSpec(ctx, m)
	if err != nil {
		return nil, fmt.Errorf("disk %q: %w", m.Name, err)
	}
	spec := cow.Spec{Base: base, ReadOnly: o.ReadOnly}
	var unclosed []uuid.UUID
	for i := range m.Layers {
		h, err := s.checkLayer(m, i)
		if err != nil {
			return nil, refusedLayer(m, err)
		}
		if h.State == layer.Head && !h.Clean {
			unclosed = append(unclosed, h.UUID)
		}
		spec.Layers = append(spec.Layers, s.paths(&m.Layers[i]))
	}
	if _, ok := o.Cow.FS.(vfs.Survivor); ok {
		o.Cow.Live, o.Cow.LiveElsewhere = s.path(disksDir, m.Name), s.liveElsewhere(m, unclosed)
	}
	for end := time.Now().Add(sealWait); ; {
		disk, err := cow.Open(spec, o.Cow)
		if err == nil {
			return disk, nil
		}
		if !errors.Is(err, layer.ErrInUse) || !s.beingSealed(m) || time.Now().After(end) {
			return nil, refusedLayer(m, classify(err))
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(sealPoll):
		}
	}
}

// liveElsewhere finds what processes that died have left, in the directories of other disks, of layers that were not closed: a
// clone, or a tag, may be opened before the disk that it was made of.
func (s *Store) liveElsewhere(m *Manifest, unclosed []uuid.UUID) map[uuid.UUID]string {
	if len(unclosed) == 0 || len(unclosed) == 1 && unclosed[0] == m.Head().UUID && s.hasLive(m.Name, unclosed[0]) {
		return nil
	}
	found := map[uuid.UUID]string{}
	users, _ := s.layerUsers() // a disk whose manifest cannot be read is not opened either
	for _, id := range unclosed {
		for _, name := range users[id] {
			if name != m.Name && s.hasLive(name, id) {
				found[id] = s.path(disksDir, name)
			}
		}
	}
	return found
}

// hasLive reports whether a process that died may have left bits of a layer that are not in its map.
func (s *Store) hasLive(disk string, id uuid.UUID) bool {
	there, err := s.exists(filepath.Join(s.path(disksDir, disk), layer.LiveName(id)))
	return there || err != nil
}

// refusedLayer names the disk, and what can be done if a layer is damaged or is not the right one.
func refusedLayer(m *Manifest, err error) error {
	if errors.Is(err, ErrRefused) || errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("disk %q: %w\nsee what is wrong and what can be repaired: cowblk check %s", m.Name, err, m.Name)
	}
	return fmt.Errorf("disk %q: %w", m.Name, err)
}

// A layer that another disk has just been promoted over is still being synced and sealed by the process that serves
// that disk: opening waits for it.
const (
	sealWait = time.Minute
	sealPoll = 20 * time.Millisecond
)

// beingSealed reports whether a layer below the head is not sealed yet.
func (s *Store) beingSealed(m *Manifest) bool {
	for _, l := range m.Sealed() {
		if h, err := layer.ReadHeader(s.fs, s.paths(&l).Map); err == nil && h.State == layer.Head {
			return true
		}
	}
	return false
}

// checkLayer compares a layer's header with the manifest. What the headers say about each other cow.Open checks; only
// the manifest knows that the files of two heads on the same parent were not exchanged.
func (s *Store) checkLayer(m *Manifest, i int) (layer.Header, error) {
	l := &m.Layers[i]
	path := s.paths(l).Map
	h, err := layer.ReadHeader(s.fs, path)
	if err != nil {
		return h, classify(err)
	}
	advice := "put back the layer that the disk's manifest names"
	switch {
	case h.UUID != l.UUID:
		return h, &Mismatch{File: path, What: "UUID of the layer", Expected: l.UUID.String(), Found: h.UUID.String(), Advice: advice}
	case int(h.BlockSize) != m.BlockSize:
		return h, &Mismatch{File: path, What: "block size", Expected: quoteBytes(int64(m.BlockSize)), Found: quoteBytes(int64(h.BlockSize)), Advice: advice}
	case i == len(m.Layers)-1 && h.Size != m.Size:
		return h, &Mismatch{File: path, What: "size of the disk", Expected: strconv.FormatInt(m.Size, 10), Found: quoteBytes(h.Size), Advice: advice}
	}
	return h, nil
}
