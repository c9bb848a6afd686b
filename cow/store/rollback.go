package store

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/google/uuid"
)

// Rollback says what Store.Rollback does, or has done.
type Rollback struct {
	Disk  string   `json:"disk"`
	Tag   string   `json:"tag"`
	Lost  []string `json:"lost"`  // later tags of the disk, oldest first; what has no tag is lost too
	Freed int64    `json:"freed"` // bytes given back to the file system
	// Layers that are removed, and discarded layers that stay: because the disks in KeptBy use them, or because they are
	// not the store's.
	Layers []uuid.UUID `json:"layers"`
	Kept   []uuid.UUID `json:"kept"`
	KeptBy []string    `json:"kept-by"`
	Head   uuid.UUID   `json:"head"`  // the new, empty one; the zero UUID in a plan
	Depth  int         `json:"depth"` // layers then

	unnamed []uuid.UUID // Layers, and those of Kept that no disk of the store names then
}

// PlanRollback says what Rollback would do, and returns the errors that can be known beforehand.
func (s *Store) PlanRollback(ref Ref) (*Rollback, error) {
	if ref.Tag == "" {
		return nil, invalidf("rollback: %s has no tag: expected NAME@TAG (%s shows the tags)", ref.Name, s.command("info", ref.Name))
	}
	if _, serving := s.Serving(ref.Name); serving {
		return nil, s.inUse(ref.Name)
	}
	m, err := s.Disk(ref.Name)
	if err != nil {
		return nil, err
	}
	plan, _, err := s.planRollback(m, ref.Tag)
	return plan, err
}

// planRollback also returns the manifest up to the tag, still without its new head.
func (s *Store) planRollback(m *Manifest, tag string) (*Rollback, *Manifest, error) {
	top, err := m.Tagged(tag)
	if err != nil {
		return nil, nil, err
	}
	users, err := s.layerUsers()
	if err != nil {
		return nil, nil, fmt.Errorf("disk %q: whether others use its layers cannot be said: %w", m.Name, err)
	}
	after := *m
	after.Layers = slices.Clone(m.Layers[:top+1])
	r := &Rollback{
		Disk: m.Name, Tag: tag, Depth: top + 2,
		Lost: []string{}, Layers: []uuid.UUID{}, Kept: []uuid.UUID{}, KeptBy: []string{},
	}
	for _, l := range m.Layers[top+1:] {
		if l.Tag != "" {
			r.Lost = append(r.Lost, l.Tag)
		}
		others := slices.DeleteFunc(slices.Clone(users[l.UUID]), func(name string) bool { return name == m.Name })
		if len(others) == 0 {
			r.unnamed = append(r.unnamed, l.UUID)
			r.Freed += s.takes(&l)
			if l.own() {
				r.Layers = append(r.Layers, l.UUID)
				continue
			}
		}
		r.Kept = append(r.Kept, l.UUID)
		r.KeptBy = append(r.KeptBy, others...)
	}
	slices.Sort(r.KeptBy)
	r.KeptBy = slices.Compact(r.KeptBy)
	return r, &after, nil
}

// Rollback takes a disk that nobody has open back to one of its tags: the layers up to the tag stay, a new, empty head
// goes on top, and what came after is discarded. Discarded layers that no other disk uses are removed. The change is
// one durable step: a crash leaves the disk as it was or rolled back, and what is to be removed goes with the next
// command. The discarded layers need not be sound, what stays must be. The disk keeps its size.
// Errors: ErrInvalid, ErrNotFound (disk, tag), ErrInUse, ErrRefused (what would stay is damaged).
func (s *Store) Rollback(ctx context.Context, ref Ref) (*Rollback, error) {
	return s.RollbackLosing(ctx, ref, nil)
}

// RollbackLosing is Rollback that is refused, with an ErrBusy, if the tags that are lost are others than lost by then:
// those that a person has agreed to lose, as PlanRollback has listed them. A nil slice stands for any.
func (s *Store) RollbackLosing(ctx context.Context, ref Ref, lost []string) (*Rollback, error) {
	if _, err := s.PlanRollback(ref); err != nil {
		return nil, err
	}
	lock, err := s.LockDisk(ref.Name)
	if err != nil {
		return nil, err
	}
	defer lock.Unlock()
	if err := s.settle(ctx); err != nil {
		return nil, err
	}
	w, err := s.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer w.end() // removes the layers of the journal that no manifest names
	r, err := s.rollback(ctx, w, ref, lost)
	if err != nil {
		return nil, fmt.Errorf("rollback to %s: %w", ref, err)
	}
	return r, nil
}

func (s *Store) rollback(ctx context.Context, w *work, ref Ref, lost []string) (*Rollback, error) {
	m, err := s.Disk(ref.Name)
	if err != nil {
		return nil, err
	}
	plan, after, err := s.planRollback(m, ref.Tag)
	if err != nil {
		return nil, err
	}
	if lost != nil && !slices.Equal(lost, plan.Lost) {
		return nil, fmt.Errorf("disk %q: %w: it was promoted meanwhile: tags that would be lost: expected %s, found %s",
			m.Name, ErrBusy, listText(lost), listText(plan.Lost))
	}
	id, err := w.newHead(after)
	if err != nil {
		return nil, err
	}
	if err := s.locked(ctx, func() error { return w.moveIn(w.path("layer"), layersDir, id.String()) }); err != nil {
		return nil, err
	}
	// Before anything is given up for it, the new stack has to prove sound. Opening also seals the tag's layer if a
	// crash had left that undone.
	disk, err := s.openStack(ctx, after, OpenOptions{})
	if err != nil {
		return nil, err
	}
	if err := disk.Close(); err != nil {
		return nil, err
	}
	var r *Rollback
	err = s.locked(ctx, func() error {
		// Once more: disks may have come and gone since.
		if r, _, err = s.planRollback(m, ref.Tag); err != nil {
			return err
		}
		if err := w.note(r.unnamed...); err != nil {
			return err
		}
		return s.writeDocument(s.path(disksDir, m.Name, diskFile), after)
	})
	if err != nil {
		uerr := s.undo(m, after)
		// Which of the two manifests a power cut leaves is not known then: no layer of either may go yet.
		w.unfinished = w.unfinished || uerr != nil
		return nil, errors.Join(err, uerr)
	}
	r.Head = id
	return r, nil
}

// undo puts m back where a failed change may have left after in its place, though perhaps not durably.
func (s *Store) undo(m, after *Manifest) error {
	now, err := s.Disk(m.Name)
	if err == nil && now.Head().UUID == after.Head().UUID {
		return s.locked(context.Background(), func() error {
			return s.writeDocument(s.path(disksDir, m.Name, diskFile), m)
		})
	}
	return err
}
