package store

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/google/uuid"

	"cowblk/cow/finding"
)

// Rollback is the plan or the result of Store.Rollback.
type Rollback struct {
	Disk  string   `json:"disk"`
	Tag   string   `json:"tag"`
	Lost  []string `json:"lost"`  // later tags of the disk, oldest first; untagged layers are lost too
	Freed int64    `json:"freed"` // bytes given back to the file system
	// Layers are removed. Kept are discarded layers that stay because the disks in KeptBy use them
	// or because they are outside the store.
	Layers []uuid.UUID `json:"layers"`
	Kept   []uuid.UUID `json:"kept"`
	KeptBy []string    `json:"kept-by"`
	Head   uuid.UUID   `json:"head"`  // the new, empty one; the zero UUID in a plan
	Depth  int         `json:"depth"` // number of layers afterwards
}

// PlanRollback returns what Rollback would do, or the errors known beforehand.
func (s *Store) PlanRollback(ctx context.Context, ref Ref) (*Rollback, error) {
	m, err := s.rollbackTarget(ctx, ref)
	if err != nil {
		return nil, err
	}
	v, err := s.survey(false)
	if err != nil {
		return nil, err
	}
	return s.planRollback(v, m, ref.Tag)
}

// rollbackTarget returns the manifest of a disk that nobody has open and that has the tag. A tag
// that is missing may be that of a promotion that was decided and interrupted: it is finished
// first.
func (s *Store) rollbackTarget(ctx context.Context, ref Ref) (*Manifest, error) {
	if ref.Tag == "" {
		return nil, finding.Invalidf(
			"rollback: %s has no tag: expected NAME@TAG (%s shows the tags)", ref.Name,
			s.command("info", ref.Name))
	}
	if _, serving := s.Serving(ref.Name); serving {
		return nil, s.inUse(ref.Name)
	}
	m, err := s.Disk(ref.Name)
	if err != nil {
		return nil, err
	}
	if _, err = m.Tagged(ref.Tag); err == nil {
		return m, nil
	}
	if err := s.recoverFor(ctx, ref.Name); err != nil {
		return nil, err
	}
	if m, err = s.Disk(ref.Name); err == nil {
		_, err = m.Tagged(ref.Tag)
	}
	return m, err
}

// planRollback plans the rollback of a disk from a survey.
func (s *Store) planRollback(v *survey, m *Manifest, tag string) (*Rollback, error) {
	top, err := m.Tagged(tag)
	if err != nil {
		return nil, err
	}
	r, err := v.planRelease(m, top+1)
	if err != nil {
		return nil, err
	}
	plan := &Rollback{
		Disk: m.Name, Tag: tag, Depth: top + 2, Lost: m.tagsFrom(top + 1),
		Freed: r.freed, Layers: r.layers, Kept: r.kept, KeptBy: []string{},
	}
	for _, id := range r.kept {
		plan.KeptBy = append(plan.KeptBy, v.users(id, m.Name)...)
	}
	slices.Sort(plan.KeptBy)
	plan.KeptBy = slices.Compact(plan.KeptBy)
	return plan, nil
}

// Rollback returns a disk that nobody has open to one of its tags. The layers up to the tag stay, a
// new, empty head is added, and later layers are discarded: those that no other disk uses are
// removed. The change is one atomic, durable step; after a crash the next command removes what is
// left over. The discarded layers may be damaged, the others must not be. The disk keeps its size.
// Errors: ErrInvalid, ErrNotFound (disk, tag), ErrInUse, ErrRefused (a layer that stays is
// damaged).
func (s *Store) Rollback(ctx context.Context, ref Ref) (*Rollback, error) {
	return s.RollbackLosing(ctx, ref, nil)
}

// RollbackLosing is Rollback with a check of the lost tags: it fails with an ErrBusy if they differ
// from lost, the list of PlanRollback that the user confirmed. nil accepts any.
func (s *Store) RollbackLosing(ctx context.Context, ref Ref, lost []string) (*Rollback, error) {
	if _, err := s.rollbackTarget(ctx, ref); err != nil {
		return nil, err
	}
	lock, err := s.LockDisk(ref.Name)
	if err != nil {
		return nil, err
	}
	defer lock.Unlock()
	if err := s.recoverFor(ctx, ref.Name); err != nil {
		return nil, err
	}
	// A rollback frees space and may be needed for that.
	var r *Rollback
	err = s.WithReserve(func() (err error) {
		r, err = s.rollbackOnce(ctx, ref, lost)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("rollback to %s: %w", ref, err)
	}
	return r, nil
}

// rollbackOnce makes one attempt of Rollback with the disk locked. After an error nothing has
// changed.
func (s *Store) rollbackOnce(ctx context.Context, ref Ref, lost []string) (*Rollback, error) {
	tx, err := s.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer tx.close()
	m, err := s.Disk(ref.Name)
	if err != nil {
		return nil, err
	}
	top, err := m.Tagged(ref.Tag)
	if err != nil {
		return nil, err
	}
	if err := s.trustedFiles(m); err != nil {
		return nil, err
	}
	after := *m
	after.Layers = slices.Clone(m.Layers[:top+1])
	if now := m.tagsFrom(top + 1); lost != nil && !slices.Equal(lost, now) {
		return nil, fmt.Errorf(
			"disk %q: %w: it was promoted meanwhile: tags that would be lost: expected %s, found %s",
			m.Name, ErrBusy, listText(lost), listText(now))
	}
	id, err := tx.newHead(&after)
	if err != nil {
		return nil, err
	}
	if err := s.locked(ctx, func() error { return tx.moveInHead(m, &after) }); err != nil {
		return nil, err
	}
	// Check that the new stack opens before anything is discarded. The open also seals the tag's
	// layer if a crash has prevented that.
	disk, err := s.openStack(ctx, &after, OpenOptions{})
	if err != nil {
		return nil, err
	}
	if err := disk.Close(); err != nil {
		return nil, err
	}
	var discarded []uuid.UUID
	for i := len(m.Layers) - 1; i > top; i-- {
		discarded = append(discarded, m.Layers[i].UUID)
	}
	if err := tx.journalLayers(m.Name, discarded...); err != nil {
		return nil, err
	}
	var plan *Rollback
	err = s.locked(ctx, func() error {
		v, err := s.survey(true)
		if err != nil {
			return err
		}
		if plan, err = s.planRollback(v, m, ref.Tag); err != nil {
			return err
		}
		if err := s.writeDocument(s.path(disksDir, m.Name, diskFile), &after); err != nil {
			return err
		}
		// The change is done. The journal keeps what cannot be removed now for the next command.
		v.replace(&after)
		if err := v.releaseAbove(m, top+1, tx.dir, m.Name); err != nil {
			tx.unresolved = true
			s.log.Warn("layers that were rolled back cannot be removed, the next command will try again", "disk", m.Name, "err", err)
			return nil
		}
		tx.committed = true
		return nil
	})
	if err != nil {
		uerr := s.undo(m, &after)
		// A power cut may leave either manifest, so no layer of either may be removed.
		tx.unresolved = tx.unresolved || uerr != nil
		return nil, errors.Join(err, uerr)
	}
	plan.Head = id
	return plan, nil
}

// undo restores m if a failed change may have installed after, perhaps not durably.
func (s *Store) undo(m, after *Manifest) error {
	now, err := s.Disk(m.Name)
	if err == nil && now.Head().UUID == after.Head().UUID {
		return s.locked(context.Background(), func() error {
			return s.writeDocument(s.path(disksDir, m.Name, diskFile), m)
		})
	}
	return err
}
