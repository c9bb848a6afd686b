package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/google/uuid"

	"cowblk/cow/finding"
	"cowblk/cow/layer"
)

// Promotion is the result of Promote for one disk.
type Promotion struct {
	Disk   string    `json:"disk"`
	Tag    string    `json:"tag"`
	Sealed uuid.UUID `json:"sealed"` // the former head
	Head   uuid.UUID `json:"head"`   // the new head
	Depth  int       `json:"depth"`  // number of layers with the new head
}

// DefaultTag returns the tag of a promotion without a tag: the time.
func DefaultTag(t time.Time) string { return t.UTC().Format("20060102T150405Z") }

// freeTag returns DefaultTag, or the next one that none of the disks has: 20061127T120000Z-2 and so
// on.
func freeTag(disks []*Manifest, t time.Time) string {
	first := DefaultTag(t)
	tag := first
	for n := 2; slices.ContainsFunc(disks, func(m *Manifest) bool {
		_, err := m.Tagged(tag)
		return err == nil
	}); n++ {
		tag = first + "-" + strconv.Itoa(n)
	}
	return tag
}

// Promote seals the heads of disks that nobody has open, tags them and adds a new, empty head: on
// all of them or on none. An empty tag is DefaultTag or the next free one. The new heads and
// manifests are durable before the old heads are sealed. A crash in between leaves an unsealed
// layer below the head, which the next open seals. Errors: ErrNotFound, ErrInUse, ErrExists (the
// tag), ErrRefused.
func (s *Store) Promote(ctx context.Context, names []string, tag string) (done []*Promotion,
	err error) {
	var disks []*Manifest
	for i, name := range names {
		if slices.Contains(names[:i], name) {
			return nil, finding.Invalidf("promote: disk %q is named twice", name)
		}
	}
	for _, name := range names {
		// The open checks the stack, and the close flushes it.
		opened, err := s.OpenDisk(ctx, name, OpenOptions{})
		if err != nil {
			return nil, err
		}
		defer opened.Lock.Unlock()
		if err := opened.Disk.Close(); err != nil {
			return nil, fmt.Errorf("disk %q: %w", name, err)
		}
		disks = append(disks, opened.Manifest)
	}
	p, err := s.preparePromotion(ctx, &Pending{s: s, tag: tag, before: disks})
	if err != nil {
		return nil, err
	}
	defer p.Close(true)
	for _, h := range p.Heads() {
		err = errors.Join(err, h.Close())
	}
	if err == nil {
		err = p.Commit()
	}
	if err != nil {
		return nil, fmt.Errorf("promote: %w", err)
	}
	for _, m := range p.Manifests() {
		old := &m.Layers[len(m.Layers)-2]
		done = append(done, &Promotion{Disk: m.Name, Tag: p.Tag(), Sealed: old.UUID,
			Head: m.Head().UUID, Depth: len(m.Layers)})
		if serr := s.seal(old, *old.Sealed); serr != nil {
			err = errors.Join(err,
				fmt.Errorf("promote %q: the tag exists and the disk is intact; the layer could not be sealed, and the next open tries again: %w", m.Name, serr))
		}
	}
	return done, err
}

func (s *Store) seal(l *Layer, now time.Time) error {
	f, err := layer.Open(s.fs, s.paths(l), layer.OpenParams{Write: true,
		Expect: layer.Expect{UUID: l.UUID, State: layer.Head}})
	if err != nil {
		return err
	}
	return errors.Join(f.Seal(now), f.Close())
}
