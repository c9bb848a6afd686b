package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"cowblk/cow"
	"cowblk/cow/finding"
	"cowblk/cow/layer"
)

// OpenOptions for OpenDisk; the zero value opens for writing.
type OpenOptions struct {
	// Cow is handed to cow.Open; its FS and Log are the store's if nil.
	Cow cow.Options
	// ReadOnly opens all layers for reading only.
	ReadOnly bool
	// Serve opens for a guest that outlives this process: unflushed writes are kept for the next
	// process. The store chooses cow.Options.SharedDir.
	Serve bool
}

// Opened is an open disk with its lock.
type Opened struct {
	Disk     *cow.Disk
	Manifest *Manifest
	Lock     *Lock
}

// Close closes the disk, then gives up the lock.
func (o *Opened) Close() error {
	err := errors.Join(o.Disk.Close(), o.Lock.Unlock())
	o.Lock.s.restoreReserve()
	return err
}

// OpenDisk locks the disk, checks its base and layers, and opens the stack. After an error nothing
// has changed. Errors: ErrNotFound, ErrInUse (names the process), ErrRefused, and the context's: an
// image may be hashed again.
func (s *Store) OpenDisk(ctx context.Context, name string, o OpenOptions) (*Opened, error) {
	lockOpts := lockOptions{readOnly: o.ReadOnly}
	if o.Serve {
		lockOpts.wait = lockWait
	}
	lock, err := s.lockDisk(ctx, name, lockOpts)
	if err != nil {
		return nil, err
	}
	if !o.ReadOnly {
		s.prepare()
	}
	if err := s.recoverFor(ctx, name); err != nil {
		return nil, errors.Join(err, lock.Unlock())
	}
	m, err := s.Disk(name)
	if err == nil {
		var disk *cow.Disk
		// Some file systems need space to overwrite a header.
		err = s.WithReserve(func() (err error) {
			disk, err = s.openStack(ctx, m, o)
			return err
		})
		if err == nil {
			return &Opened{Disk: disk, Manifest: m, Lock: lock}, nil
		}
		if errors.Is(err, layer.ErrSealed) {
			err = fmt.Errorf("%w\nwhat it holds can be read, and imported as an image for a new disk: %s; %s", err,
				s.command("serve", name, "--read-only"), s.command("export", name, "--listen",
					"ADDRESS"))
		}
	}
	return nil, errors.Join(err, lock.Unlock())
}

// openStack opens the stack that a manifest describes. The caller holds the disk's lock.
func (s *Store) openStack(ctx context.Context, m *Manifest, o OpenOptions) (*cow.Disk, error) {
	if o.Cow.FS == nil {
		o.Cow.FS = s.fs
	}
	if o.Cow.Log == nil {
		o.Cow.Log = s.log
	}
	if o.Cow.OnNoSpace == nil {
		// A disk that is opened for a rollback or a promotion must not use the second half of the
		// reserve.
		o.Cow.OnNoSpace = func(why error, closing bool) bool {
			return s.onNoSpace(why, closing && o.Serve)
		}
	}
	if err := s.trustedFiles(m); err != nil {
		return nil, err
	}
	if err := s.checkDevices(m, o.ReadOnly); err != nil {
		return nil, err
	}
	base, err := s.baseSpec(ctx, m)
	if err != nil {
		return nil, fmt.Errorf("disk %q: %w", m.Name, err)
	}
	inPlace := m.Base != nil && m.Base.Image == ""
	o.Cow.ForceShare = o.Cow.ForceShare && inPlace
	spec := cow.Spec{Base: base, ReadOnly: o.ReadOnly}
	for i := range m.Layers {
		h, err := s.checkLayer(m, i)
		if err != nil {
			return nil, s.refusedLayer(m, err)
		}
		if h.State == layer.Head && !h.Clean && h.Generation == 0 {
			if err := s.refuseLegacyLiveFile(m, h.UUID, o.Cow.Unflushed); err != nil {
				return nil, s.refusedLayer(m, Classify(err))
			}
		}
		spec.Layers = append(spec.Layers, s.paths(&m.Layers[i]))
	}
	if !o.ReadOnly && o.Serve {
		if o.Cow.SharedDir, err = s.sharedDir(); err != nil && !o.Cow.LoseUnflushed {
			s.log.Warn("writes of new blocks complete only when they are durable, which is slow: no directory in memory can keep unflushed writes if this process is killed. Mount a tmpfs at one of them, or give --lose-unflushed",
				"disk", m.Name, "places", listText(s.SharedDirs()), "err", err)
		}
	}
	sealing := true
	for end := time.Now().Add(sealWait); ; {
		disk, err := cow.Open(spec, o.Cow)
		if err == nil {
			if !o.ReadOnly {
				s.removeLegacyLiveFiles(m)
			}
			return disk, nil
		}
		var locked *cow.BaseLockedError
		if errors.As(err, &locked) {
			err = s.refusedLayer(m, Classify(err))
			if inPlace && !locked.Writer {
				err = fmt.Errorf("%w\n%s", err, shareAdvice)
			}
			return nil, err
		}
		// Retry once after the seal: it may have come after the open.
		again := sealing
		sealing = s.beingSealed(m)
		if !errors.Is(err, layer.ErrInUse) || !again && !sealing || time.Now().After(end) {
			return nil, s.refusedLayer(m, Classify(err))
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(sealPoll):
		}
	}
}

// refusedLayer adds the disk's name and, if a layer is damaged or missing, advice.
func (s *Store) refusedLayer(m *Manifest, err error) error {
	if errors.Is(err, ErrRefused) || errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("disk %q: %w\nsee what is wrong and what can be repaired: %s", m.Name,
			err, s.command("check", m.Name))
	}
	return fmt.Errorf("disk %q: %w", m.Name, err)
}

// The process that serves another disk may still be syncing and sealing its former head, which is a
// layer of this disk. Opening waits for the seal.
const (
	sealWait = time.Minute
	sealPoll = 20 * time.Millisecond
)

// beingSealed reports whether a layer below the head is not sealed.
func (s *Store) beingSealed(m *Manifest) bool {
	for _, l := range m.Sealed() {
		if h, err := layer.ReadHeader(s.fs, s.paths(&l).Map); err == nil && h.State == layer.Head {
			return true
		}
	}
	return false
}

// checkLayer compares a layer's header with the manifest. cow.Open compares the headers with each
// other, but only the manifest shows that the files of two heads with the same parent were swapped.
func (s *Store) checkLayer(m *Manifest, i int) (layer.Header, error) {
	l := &m.Layers[i]
	path := s.paths(l).Map
	h, err := layer.ReadHeader(s.fs, path)
	if err != nil {
		return h, Classify(err)
	}
	advice := "put back the layer that the disk's manifest names"
	switch {
	case h.UUID != l.UUID:
		return h, refused(path, "UUID of the layer", l.UUID.String(), h.UUID.String(), advice)
	case int(h.BlockSize) != m.BlockSize:
		return h, refused(path, "block size", finding.Bytes(int64(m.BlockSize)),
			finding.Bytes(int64(h.BlockSize)), advice)
	case i == len(m.Layers)-1 && h.Size != m.Size:
		return h, refused(path, "size of the disk", m.Size, finding.Bytes(h.Size), advice)
	}
	return h, nil
}

// Preflight opens and closes the layers below the head of a disk that another process may be
// serving, with the checks of OpenDisk. It does not open the head and takes no lock, so OpenDisk
// may still fail. It finds errors of base, images, sealed layers and manifest early, and leaves
// what it read in the page cache.
func (s *Store) Preflight(ctx context.Context, name string, o cow.Options) error {
	m, err := s.Disk(name)
	if err != nil {
		return err
	}
	if err := s.trustedFiles(m); err != nil {
		return err
	}
	m.Layers = m.Sealed()
	if len(m.Layers) > 0 {
		h, err := layer.ReadHeader(s.fs, s.paths(m.Head()).Map)
		if err != nil {
			return fmt.Errorf("disk %q: %w", name, Classify(err))
		}
		m.Size = h.Size // the disk may have grown since
	} else if m.Base == nil {
		return nil
	}
	disk, err := s.openStack(ctx, m, OpenOptions{Cow: o, ReadOnly: true})
	if errors.Is(err, layer.ErrInUse) {
		return nil // another process is still sealing a former head
	}
	if err != nil {
		return err
	}
	return disk.Close()
}
