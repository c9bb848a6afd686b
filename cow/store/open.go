package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"time"

	"cowblk/cow"
	"cowblk/cow/layer"
)

// OpenOptions for OpenDisk; the zero value opens for writing.
type OpenOptions struct {
	// Cow is handed to cow.Open; its FS and Log are the store's if nil.
	Cow cow.Options
	// ReadOnly opens the head for reading too.
	ReadOnly bool
	// Serve opens for a guest, which outlives this process: what it has not flushed is kept for the next one
	// (cow.Options.SharedDir, which is the store's to say).
	Serve bool
}

// Opened is an open disk and the right to it.
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

// OpenDisk takes the disk's lock, checks its base and its layers, and opens the stack. A refused open has changed
// nothing. Errors: ErrNotFound, ErrInUse (names the process), ErrRefused, the context's (an image may have to be
// hashed again).
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
		// On some file systems a full one has no room to write over a header either.
		err = s.WithReserve(func() (err error) {
			disk, err = s.openStack(ctx, m, o)
			return err
		})
		if err == nil {
			return &Opened{Disk: disk, Manifest: m, Lock: lock}, nil
		}
		if errors.Is(err, layer.ErrSealed) {
			err = fmt.Errorf("%w\nwhat it holds can be read, and imported as an image for a new disk: %s; %s", err,
				s.command("serve", name, "--read-only"), s.command("export", name, "--listen", "ADDRESS"))
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
	if o.Cow.OnNoSpace == nil {
		// The second half of the reserve is not for a disk that is opened to be rolled back or promoted.
		o.Cow.OnNoSpace = func(why error, closing bool) bool { return s.onNoSpace(why, closing && o.Serve) }
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
				return nil, s.refusedLayer(m, classify(err))
			}
		}
		spec.Layers = append(spec.Layers, s.paths(&m.Layers[i]))
	}
	if !o.ReadOnly && o.Serve {
		if o.Cow.SharedDir, err = s.sharedDir(); err != nil && !o.Cow.LoseUnflushed {
			s.log.Warn("writes of new blocks complete only when they are durable, which is slow: there is no place in memory to keep for the next process what a guest has not flushed, if this one is killed. Mount a tmpfs at one of them, or give --lose-unflushed",
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
			err = s.refusedLayer(m, classify(err))
			if inPlace && !locked.Writer {
				err = fmt.Errorf("%w\n%s", err, shareAdvice)
			}
			return nil, err
		}
		// Once more after it was sealed: that may have happened after the open.
		again := sealing
		sealing = s.beingSealed(m)
		if !errors.Is(err, layer.ErrInUse) || !again && !sealing || time.Now().After(end) {
			return nil, s.refusedLayer(m, classify(err))
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(sealPoll):
		}
	}
}

// refusedLayer names the disk, and what can be done if a layer is damaged or is not the right one.
func (s *Store) refusedLayer(m *Manifest, err error) error {
	if errors.Is(err, ErrRefused) || errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("disk %q: %w\nsee what is wrong and what can be repaired: %s", m.Name, err, s.command("check", m.Name))
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
