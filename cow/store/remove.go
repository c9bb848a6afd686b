package store

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/google/uuid"
)

// Removal says what Remove does, or has done.
type Removal struct {
	Name  string `json:"name"`
	Kind  string `json:"kind"`  // "disk" or "image"
	Freed int64  `json:"freed"` // bytes given back to the file system
	// Layers that are removed with a disk, and those that stay because other disks use them or because they are not
	// the store's.
	Layers []uuid.UUID `json:"layers"`
	Kept   []uuid.UUID `json:"kept"`
	// Damaged: the disk's manifest was missing or damaged, and no layer goes with it.
	Damaged bool `json:"damaged,omitempty"`

	left string // directory in tmp in which everything is that goes; empty: nothing
}

// PlanRemove says what Remove would do, and returns the errors that Remove would.
func (s *Store) PlanRemove(name string) (*Removal, error) {
	if err := CheckName("disk", name); err != nil {
		return nil, err
	}
	if t := s.stray(KindImage, name); t != nil {
		return nil, t.Err()
	}
	if there, err := s.exists(s.path(imagesDir, name)); err != nil {
		return nil, err
	} else if there {
		r, err := s.planRefs()
		if err != nil {
			return nil, err
		}
		return s.planImage(r, name)
	}
	if _, serving := s.Serving(name); serving {
		return nil, s.inUse(name)
	}
	return s.planDisk(name)
}

func (s *Store) planImage(r *refs, name string) (*Removal, error) {
	used, _, err := r.above(imageRef(name), uuid.Nil)
	var users []string
	if used || err != nil || r.unreadable != "" {
		users, err = s.imageUsers(name) // whose names are told
	}
	if err != nil {
		return nil, fmt.Errorf("image %q: whether disks use it cannot be said: %w", name, err)
	}
	if len(users) > 0 {
		noun := "disk"
		if len(users) > 1 {
			noun = "disks"
		}
		return nil, fmt.Errorf("image %q is %w: base of %s %s\nit stays as long as a disk lies on it: %s shows them",
			name, ErrInUse, noun, strings.Join(users, ", "), s.command("tree", name))
	}
	return &Removal{Name: name, Kind: "image", Freed: s.allocated(s.ImageData(name)), Layers: []uuid.UUID{}, Kept: []uuid.UUID{}}, nil
}

func (s *Store) planDisk(name string) (*Removal, error) {
	m, err := s.Disk(name)
	if err != nil {
		return nil, err
	}
	r, err := s.planRefs()
	if err != nil {
		return nil, err
	}
	return s.planWith(r, m)
}

// planWith says what the removal of a disk does if r is right.
func (s *Store) planWith(r *refs, m *Manifest) (*Removal, error) {
	stays, err := r.needed(m, 0)
	if err != nil {
		return nil, fmt.Errorf("disk %q: whether others use its layers cannot be said: %w", m.Name, err)
	}
	plan := &Removal{Name: m.Name, Kind: "disk", Layers: []uuid.UUID{}, Kept: []uuid.UUID{}}
	for i := range m.Layers {
		l := &m.Layers[i]
		if i > stays {
			plan.Freed += s.takes(l)
		}
		if i > stays && l.own() {
			plan.Layers = append(plan.Layers, l.UUID)
		} else {
			plan.Kept = append(plan.Kept, l.UUID)
		}
	}
	return plan, nil
}

// takes is what the store holds of a layer, in bytes on the file system.
func (s *Store) takes(l *Layer) int64 {
	p := s.paths(l)
	if l.own() {
		return s.allocated(p.Map) + s.allocated(p.Data)
	}
	return s.allocated(p.Sums)
}

// Remove removes a disk, with the layers that only it uses, or an image that no disk uses. It needs no room on the file
// system. Errors: ErrNotFound, ErrInUse (a process has the disk open, disks lie on the image), ErrRefused (the disk's
// manifest cannot be read; any disk's, if it is an image).
func (s *Store) Remove(ctx context.Context, name string) (r *Removal, err error) {
	defer s.replenish()
	return r, s.inNeed(0, func() error {
		r, err = s.removeOnce(ctx, name)
		return err
	})
}

// removeOnce is Remove. After an error nothing has changed.
func (s *Store) removeOnce(ctx context.Context, name string) (*Removal, error) {
	plan, err := s.PlanRemove(name)
	if err != nil {
		return nil, err
	}
	if plan.Kind == "disk" {
		return s.removeDisk(ctx, name)
	}
	err = s.locked(ctx, func() error {
		_ = s.clean()
		r, err := s.openRefs()
		if err != nil {
			return err
		}
		if plan, err = s.planImage(r, name); err != nil {
			return err
		}
		if plan.left, err = s.moveOut(imagesDir, name); err == nil {
			r.dropNode(imageRef(name))
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	s.removeLeft(plan)
	return plan, nil
}

// removeDisk moves the disk's directory, with its manifest and its lock, to tmp: that removes the disk, and the directory
// says what else is to go. The store is locked for renames only.
func (s *Store) removeDisk(ctx context.Context, name string) (plan *Removal, err error) {
	lock, err := s.LockDisk(name)
	if err != nil {
		return nil, err
	}
	defer lock.Unlock()
	if err := s.settleKeeping(ctx, name, 0); err != nil {
		return nil, err
	}
	err = s.locked(ctx, func() error {
		_ = s.clean() // a promotion that was interrupted has left a layer on the disk's head
		m, err := s.Disk(name)
		if err != nil {
			return err
		}
		r, err := s.openRefs()
		if err != nil {
			return err
		}
		if plan, err = s.planWith(r, m); err != nil {
			return err
		}
		left, err := s.moveOut(disksDir, name)
		if err != nil {
			return err
		}
		if err := r.releaseAbove(m, 0, left); err != nil {
			s.log.Warn("layers of a removed disk are left, the next command will try again", "disk", name, "err", err)
			return nil
		}
		r.stamp()
		plan.left = left
		return nil
	})
	if err != nil {
		return nil, err
	}
	s.removeLeft(plan)
	return plan, nil
}

// moveOut moves a disk or an image to tmp, durably, and returns its path there; or it takes that back. The store is
// locked.
func (s *Store) moveOut(dir, name string) (string, error) {
	if err := s.fs.MkdirAll(s.path(tmpDir), 0o755); err != nil {
		return "", err
	}
	out := s.path(tmpDir, removalPrefix+uuid.NewString())
	if err := s.fs.Rename(s.path(dir, name), out); err != nil {
		return "", err
	}
	if err := s.fs.SyncDir(s.path(dir)); err != nil {
		// If it cannot come back, or a power cut undoes that, the next command finishes the removal.
		return "", errors.Join(err, s.fs.Rename(out, s.path(dir, name)), s.fs.SyncDir(s.path(dir)))
	}
	return out, nil
}

// removeLeft gives back the space of what has been removed. Nobody has to wait for that.
func (s *Store) removeLeft(plan *Removal) {
	if plan.left == "" {
		return
	}
	if err := s.removeWork(plan.left); err != nil {
		s.log.Warn("cannot clean up, the next command will try again", "directory", plan.left, "err", err)
	}
}
