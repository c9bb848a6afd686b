package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"time"

	"cowblk/cow/layer"
)

// commitFile, in a work directory, holds the manifests of a change of several disks. It is what makes the change happen
// to all of them or to none: once it is durable, whoever finds its process gone writes the manifests that are missing.
const commitFile = "commit.json"

// Pending is a promotion of one or more disks that is prepared: the new heads are there, durable, and nothing names
// them yet. The caller holds the locks of the disks.
type Pending struct {
	s         *Store
	w         *work
	tag       string
	before    []*Manifest
	after     []*Manifest
	heads     []*layer.Layer
	committed bool
}

// PreparePromotion makes a new head for each disk, whose manifests are given, and opens it for writing. The disks' heads
// will have the tag (DefaultTag if empty). Close must follow. Errors: ErrInvalid, ErrExists (the tag).
func (s *Store) PreparePromotion(ctx context.Context, disks []*Manifest, tag string) (p *Pending, err error) {
	now := s.now().UTC()
	if tag == "" {
		tag = DefaultTag(now)
	}
	if err := CheckName("tag", tag); err != nil {
		return nil, err
	}
	for _, m := range disks {
		if _, err := m.Tagged(tag); err == nil {
			return nil, fmt.Errorf("tag %s@%s %w: choose another", m.Name, tag, ErrExists)
		}
	}
	w, err := s.begin(ctx)
	if err != nil {
		return nil, err
	}
	p = &Pending{s: s, w: w, tag: tag, before: disks}
	for _, m := range disks {
		if err := p.add(ctx, m, now); err != nil {
			p.Close(false)
			return nil, fmt.Errorf("promote %q: %w", m.Name, err)
		}
	}
	return p, nil
}

// add puts a new head for m among the store's layers, where it stays if it is committed, and opens it there.
func (p *Pending) add(ctx context.Context, m *Manifest, now time.Time) error {
	s := p.s
	after := *m
	after.Layers = slices.Clone(m.Layers)
	old := after.Head()
	old.Tag, old.Sealed = p.tag, &now
	id, err := p.w.newHead(&after)
	if err != nil {
		return err
	}
	if err := s.locked(ctx, func() error { return s.moveIn(p.w.path("layer"), layersDir, id.String()) }); err != nil {
		return err
	}
	head, err := layer.Open(s.fs, s.paths(after.Head()), layer.OpenParams{Write: true, Expect: layer.Expect{UUID: id, State: layer.Head}})
	if err != nil {
		return classify(err)
	}
	p.heads = append(p.heads, head)
	p.after = append(p.after, &after)
	return nil
}

// Tag is the tag that the former heads get.
func (p *Pending) Tag() string { return p.tag }

// Heads are the new heads, in the order of the disks.
func (p *Pending) Heads() []*layer.Layer { return p.heads }

// Manifests are those that Commit puts in place, in the order of the disks.
func (p *Pending) Manifests() []*Manifest { return p.after }

// Commit makes the new heads and the tag part of every disk, durably: of all of them or, after an error, of none; also
// when the process is killed at any moment.
func (p *Pending) Commit() error {
	err := p.replace(p.after)
	if err != nil {
		return errors.Join(err, p.Revert())
	}
	p.committed = true
	return nil
}

// Revert puts the manifests from before back, durably.
func (p *Pending) Revert() error {
	p.committed = false
	return p.replace(p.before)
}

func (p *Pending) replace(manifests []*Manifest) error {
	s := p.s
	// Not the promotion's context: once begun, this goes to its end.
	return s.locked(context.Background(), func() error {
		if len(manifests) > 1 {
			data, err := json.Marshal(manifests)
			if err != nil {
				return err
			}
			if err := s.fs.WriteFileAtomic(p.w.path(commitFile), data, 0o600); err != nil {
				return err
			}
		}
		for _, m := range manifests {
			if err := s.writeDocument(s.path(disksDir, m.Name, diskFile), m); err != nil {
				return err
			}
		}
		return nil
	})
}

// Close ends the promotion. Heads that a cow.Disk has taken over stay open: swapped says so. What was not committed is
// removed.
func (p *Pending) Close(swapped bool) {
	if !swapped {
		for _, h := range p.heads {
			if err := h.Abandon(); err != nil {
				p.s.log.Warn("a new head that is not needed could not be closed", "err", err)
			}
		}
	}
	p.w.end()
}

// rollForward finishes a change of several disks whose process died after it had become durable. The store is locked.
func (s *Store) rollForward(dir string) error {
	data, err := s.fs.ReadFile(filepath.Join(dir, commitFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var manifests []*Manifest
	if err == nil {
		err = json.Unmarshal(data, &manifests)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", filepath.Join(dir, commitFile), err)
	}
	for _, m := range manifests {
		path := s.path(disksDir, m.Name, diskFile)
		if there, err := s.exists(path); err != nil || !there {
			if err != nil {
				return err
			}
			continue
		}
		if err := s.writeDocument(path, m); err != nil {
			return err
		}
	}
	s.log.Info("finished an interrupted change of several disks", "disks", len(manifests))
	return nil
}

// settle finishes what dead processes have left half done, if there is anything: before a manifest is believed.
func (s *Store) settle(ctx context.Context) error {
	entries, err := s.fs.ReadDir(s.path(tmpDir))
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(entries) == 0 {
		return nil
	}
	if err != nil {
		return err
	}
	return s.locked(ctx, func() error { s.clean(); return nil })
}
