package store

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"cowblk/cow"
	"cowblk/cow/layer"
)

// Reading is a tag or a stopped disk that is open for reading.
type Reading struct {
	*cow.Disk
	Manifest *Manifest // for a tag: up to the tag's layer
	lock     *Lock     // nil for a tag
}

// Close closes the disk and releases the lock of a stopped disk.
func (r *Reading) Close() error {
	err := r.Disk.Close()
	if r.lock != nil {
		err = errors.Join(err, r.lock.Unlock())
	}
	return err
}

// OpenTag opens NAME@TAG for reading: the base and the layers up to the tag's. They are immutable,
// so any process may serve, promote, roll back or remove the disk meanwhile. Without a tag it opens
// the whole disk, which must be stopped, and holds its lock. Errors: those of OpenDisk; also
// ErrInUse if the tag's layer is not sealed in time or ctx ends during that wait.
func (s *Store) OpenTag(ctx context.Context, ref Ref, o cow.Options) (*Reading, error) {
	if ref.Tag == "" {
		opened, err := s.OpenDisk(ctx, ref.Name, OpenOptions{Cow: o, ReadOnly: true})
		if err != nil {
			if errors.Is(err, ErrInUse) {
				err = fmt.Errorf("%w\nor read one of its tags, which does not disturb it: %s", err,
					s.tagAdvice(ref.Name))
			}
			return nil, err
		}
		return &Reading{Disk: opened.Disk, Manifest: opened.Manifest, lock: opened.Lock}, nil
	}
	if err := s.Trusted(); err != nil {
		return nil, err
	}
	if err := s.trustedDisk(ref.Name); err != nil {
		return nil, err
	}
	if err := s.recoverFor(ctx, ref.Name); err != nil {
		return nil, err
	}
	for start := time.Now(); ; {
		// Read the manifest again each time: a failed promotion removes its tag.
		m, err := s.upToTag(ref)
		if err != nil {
			return nil, err
		}
		disk, err := s.openStack(ctx, m, OpenOptions{Cow: o, ReadOnly: true})
		if err == nil {
			return &Reading{Disk: disk, Manifest: m}, nil
		}
		// Only a former head that is not sealed yet is locked exclusively. openStack waits for the
		// layers below the last one.
		var locked *cow.BaseLockedError
		if !errors.Is(err, layer.ErrInUse) || errors.As(err, &locked) {
			return nil, fmt.Errorf("tag %s: %w", ref, err)
		}
		if time.Since(start) >= sealWait {
			return nil, fmt.Errorf(
				"tag %s: its layer is still being sealed: try again in a moment: %w", ref, err)
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("tag %s: waited for its layer to be sealed: %w", ref, ctx.Err())
		case <-time.After(sealPoll):
		}
	}
}

// upToTag returns the disk's manifest without the layers above the tag's.
func (s *Store) upToTag(ref Ref) (*Manifest, error) {
	if err := CheckName("tag", ref.Tag); err != nil {
		return nil, err
	}
	m, err := s.Disk(ref.Name)
	if err != nil {
		return nil, err
	}
	i, err := m.Tagged(ref.Tag)
	if err != nil {
		return nil, err
	}
	// Only this layer is read here: an open checks the others.
	only := *m
	only.Layers = m.Layers[i : i+1]
	if err := s.trustedFiles(&only); err != nil {
		return nil, err
	}
	m.Layers = m.Layers[:i+1]
	// The disk may have grown since.
	h, err := layer.ReadHeader(s.fs, s.paths(m.Head()).Map)
	if err != nil {
		return nil, fmt.Errorf("tag %s: %w", ref, Classify(err))
	}
	m.Size = h.Size
	return m, nil
}

// tagAdvice lists the tags of a disk, or says how to make one.
func (s *Store) tagAdvice(name string) string {
	var tags []string
	if m, err := s.Disk(name); err == nil {
		for _, tag := range m.tagsFrom(0) {
			tags = append(tags, name+"@"+tag)
		}
	}
	const most = 5
	switch n := len(tags); {
	case n == 0:
		return fmt.Sprintf("it has none yet; %s makes one", s.command("promote", name, "--tag",
			"NAME"))
	case n > most:
		return fmt.Sprintf("%s, and %d older ones", strings.Join(tags[n-most:], ", "), n-most)
	}
	return strings.Join(tags, ", ")
}
