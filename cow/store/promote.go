package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
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

// freeTag is DefaultTag, or what follows it if one of the disks has that already: 20061127T120000Z-2 and so on.
func freeTag(disks []*Manifest, t time.Time) string {
	first := DefaultTag(t)
	tag := first
	for n := 2; slices.ContainsFunc(disks, func(m *Manifest) bool { _, err := m.Tagged(tag); return err == nil }); n++ {
		tag = first + "-" + strconv.Itoa(n)
	}
	return tag
}

// Promote seals the heads of disks that nobody has open, names them tag (DefaultTag if empty, or the next free one) and puts a new, empty head
// on each: on all of them or on none. The new heads and the manifests that name them are durable before the old ones
// are sealed; a crash in between leaves an unsealed layer below the head, which the next open accepts and seals.
// Errors: ErrNotFound, ErrInUse, ErrExists (the tag), ErrRefused.
func (s *Store) Promote(ctx context.Context, names []string, tag string) (done []*Promotion, err error) {
	var disks []*Manifest
	for i, name := range names {
		if slices.Contains(names[:i], name) {
			return nil, invalidf("promote: disk %q is named twice", name)
		}
	}
	for _, name := range names {
		// Opening proves that the stack is sound, and closing leaves nothing unwritten.
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
		done = append(done, &Promotion{Disk: m.Name, Tag: p.Tag(), Sealed: old.UUID, Head: m.Head().UUID, Depth: len(m.Layers)})
		if serr := s.seal(old, *old.Sealed); serr != nil {
			err = errors.Join(err, fmt.Errorf("promote %q: the tag is there and the disk is intact, but its layer could not be sealed yet; the next open will: %w", m.Name, serr))
		}
	}
	return done, err
}

func (s *Store) seal(l *Layer, now time.Time) error {
	f, err := layer.Open(s.fs, s.paths(l), layer.OpenParams{Write: true, Expect: layer.Expect{UUID: l.UUID, State: layer.Head}})
	if err != nil {
		return err
	}
	return errors.Join(f.Seal(now), f.Close())
}
