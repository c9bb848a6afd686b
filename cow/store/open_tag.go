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

// Reading is the content of a tag or of a stopped disk, open for reading.
type Reading struct {
	*cow.Disk
	Manifest *Manifest // for a tag: its layers end with the tag's
	lock     *Lock     // nil: a tag
}

// Close closes the disk and, if it was not a tag, gives up its lock.
func (r *Reading) Close() error {
	err := r.Disk.Close()
	if r.lock != nil {
		err = errors.Join(err, r.lock.Unlock())
	}
	return err
}

// OpenTag opens NAME@TAG for reading: the base and the layers up to the tag's. Those never change, so the disk may be
// served meanwhile, by this process or another one, promoted, rolled back or removed. A disk without a tag is opened
// as a whole, and has to be stopped and stay so: its lock is held.
// Errors: as of OpenDisk; ErrInUse also for a tag that is not sealed after some time, or when ctx ends while waiting.
func (s *Store) OpenTag(ctx context.Context, ref Ref, o cow.Options) (*Reading, error) {
	if ref.Tag == "" {
		opened, err := s.OpenDisk(ctx, ref.Name, OpenOptions{Cow: o, ReadOnly: true})
		if err != nil {
			if errors.Is(err, ErrInUse) {
				err = fmt.Errorf("%w\nor read one of its tags, which does not disturb it: %s", err, s.tagAdvice(ref.Name))
			}
			return nil, err
		}
		return &Reading{Disk: opened.Disk, Manifest: opened.Manifest, lock: opened.Lock}, nil
	}
	if err := s.trusted(); err != nil {
		return nil, err
	}
	if err := s.trustedDisk(ref.Name); err != nil {
		return nil, err
	}
	if err := s.recoverFor(ctx, ref.Name); err != nil {
		return nil, err
	}
	for start := time.Now(); ; {
		// The manifest too is read anew: a promotion that fails takes its tag back.
		m, err := s.upToTag(ref)
		if err != nil {
			return nil, err
		}
		disk, err := s.openStack(ctx, m, OpenOptions{Cow: o, ReadOnly: true})
		if err == nil {
			return &Reading{Disk: disk, Manifest: m}, nil
		}
		// Of a tag's layers only a former head that is not sealed yet is locked exclusively; openStack waits for those
		// below the last one.
		var locked *cow.BaseLockedError
		if !errors.Is(err, layer.ErrInUse) || errors.As(err, &locked) {
			return nil, fmt.Errorf("tag %s: %w", ref, err)
		}
		if time.Since(start) >= sealWait {
			return nil, fmt.Errorf("tag %s: its layer is still being sealed: try again in a moment: %w", ref, err)
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("tag %s: waited for its layer to be sealed: %w", ref, ctx.Err())
		case <-time.After(sealPoll):
		}
	}
}

// upToTag is the disk's manifest without the layers above the tag's.
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
	m.Layers = m.Layers[:i+1]
	// The disk may have grown since.
	h, err := layer.ReadHeader(s.fs, s.paths(m.Head()).Map)
	if err != nil {
		return nil, fmt.Errorf("tag %s: %w", ref, classify(err))
	}
	m.Size = h.Size
	return m, nil
}

// tagAdvice says which tags a disk has, or how it gets one.
func (s *Store) tagAdvice(name string) string {
	var tags []string
	if m, err := s.Disk(name); err == nil {
		for _, l := range m.Sealed() {
			if l.Tag != "" {
				tags = append(tags, name+"@"+l.Tag)
			}
		}
	}
	const most = 5
	switch n := len(tags); {
	case n == 0:
		return fmt.Sprintf("it has none yet; %s makes one", s.command("promote", name, "--tag", "NAME"))
	case n > most:
		return fmt.Sprintf("%s, and %d older ones", strings.Join(tags[n-most:], ", "), n-most)
	}
	return strings.Join(tags, ", ")
}
