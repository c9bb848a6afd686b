package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"

	"cowblk/cow/layer"
)

// Promotion is what Promote has done.
type Promotion struct {
	Disk   string    `json:"disk"`
	Tag    string    `json:"tag"`
	Sealed uuid.UUID `json:"sealed"` // the layer that was the head
	Head   uuid.UUID `json:"head"`   // the new one
	Depth  int       `json:"depth"`  // layers now
}

// DefaultTag is the tag of a promotion that was given none: the time.
func DefaultTag(t time.Time) string { return t.UTC().Format("20060102T150405Z") }

// Promote seals the head of a disk that nobody has open, names it tag (DefaultTag if empty) and puts a new, empty head
// on top. The new head and the manifest that names it are durable before the old one is sealed; a crash in between
// leaves an unsealed layer below the head, which the next open accepts and seals.
// Errors: ErrNotFound, ErrInUse, ErrExists (the tag), ErrRefused.
func (s *Store) Promote(ctx context.Context, name, tag string) (*Promotion, error) {
	now := s.now().UTC()
	if tag == "" {
		tag = DefaultTag(now)
	}
	if err := CheckName("tag", tag); err != nil {
		return nil, err
	}
	// Opening proves that the stack is sound, and closing leaves nothing unwritten.
	opened, err := s.OpenDisk(ctx, name, OpenOptions{})
	if err != nil {
		return nil, err
	}
	defer opened.Lock.Unlock()
	if err := opened.Disk.Close(); err != nil {
		return nil, fmt.Errorf("disk %q: %w", name, err)
	}
	m := opened.Manifest
	if _, err := m.Tagged(tag); err == nil {
		return nil, fmt.Errorf("tag %s@%s %w: choose another", name, tag, ErrExists)
	}
	old := m.Head()
	old.Tag, old.Sealed = tag, &now
	if err := s.stack(ctx, m); err != nil {
		return nil, fmt.Errorf("promote %q: %w", name, err)
	}
	old = &m.Layers[len(m.Layers)-2]
	p := &Promotion{Disk: name, Tag: tag, Sealed: old.UUID, Head: m.Head().UUID, Depth: len(m.Layers)}
	if err := s.seal(old, now); err != nil {
		return nil, fmt.Errorf("promote %q: the tag is there and the disk is intact, but its layer could not be sealed yet; the next open will: %w", name, err)
	}
	return p, nil
}

// stack puts a new head on m, durably.
func (s *Store) stack(ctx context.Context, m *Manifest) error {
	w, err := s.begin(ctx)
	if err != nil {
		return err
	}
	defer w.end()
	id, err := w.newHead(m)
	if err != nil {
		return err
	}
	return s.locked(ctx, func() error {
		if err := s.moveIn(w.path("layer"), layersDir, id.String()); err != nil {
			return err
		}
		return s.writeDocument(s.path(disksDir, m.Name, diskFile), m)
	})
}

func (s *Store) seal(l *Layer, now time.Time) error {
	f, err := layer.Open(s.fs, s.paths(l), layer.OpenParams{Write: true, Expect: layer.Expect{UUID: l.UUID, State: layer.Head}})
	if err != nil {
		return err
	}
	return errors.Join(f.Seal(now), f.Close())
}
