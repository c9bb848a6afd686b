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

	unnamed []uuid.UUID // Layers, and those of Kept that no disk of the store names then
}

// PlanRemove says what Remove would do, and returns the errors that Remove would.
func (s *Store) PlanRemove(name string) (*Removal, error) {
	if err := CheckName("disk", name); err != nil {
		return nil, err
	}
	if there, err := s.exists(s.path(imagesDir, name)); err != nil {
		return nil, err
	} else if there {
		return s.planImage(name)
	}
	if _, serving := s.Serving(name); serving {
		return nil, s.inUse(name)
	}
	return s.planDisk(name)
}

func (s *Store) planImage(name string) (*Removal, error) {
	users, err := s.imageUsers(name)
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
	users, err := s.layerUsers()
	if err != nil {
		return nil, fmt.Errorf("disk %q: whether others use its layers cannot be said: %w", name, err)
	}
	r := &Removal{Name: name, Kind: "disk", Layers: []uuid.UUID{}, Kept: []uuid.UUID{}}
	for _, l := range m.Layers {
		shared := len(users[l.UUID]) > 1
		if !shared {
			r.unnamed = append(r.unnamed, l.UUID)
			r.Freed += s.takes(&l)
		}
		if shared || !l.own() {
			r.Kept = append(r.Kept, l.UUID)
		} else {
			r.Layers = append(r.Layers, l.UUID)
		}
	}
	return r, nil
}

// takes is what the store holds of a layer, in bytes on the file system.
func (s *Store) takes(l *Layer) int64 {
	p := s.paths(l)
	if l.own() {
		return s.allocated(p.Map) + s.allocated(p.Data)
	}
	return s.allocated(p.Sums)
}

// Remove removes a disk, with the layers that only it uses, or an image that no disk uses. Errors: ErrNotFound, ErrInUse
// (a process has the disk open, disks lie on the image), ErrRefused (a manifest cannot be read, so that nobody knows
// who uses what).
func (s *Store) Remove(ctx context.Context, name string) (*Removal, error) {
	plan, err := s.PlanRemove(name)
	if err != nil {
		return nil, err
	}
	if plan.Kind == "disk" {
		lock, err := s.LockDisk(name)
		if err != nil {
			return nil, err
		}
		defer lock.Unlock()
	}
	w, err := s.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer w.end() // removes what has been moved out, and the layers of the journal
	err = s.locked(ctx, func() error {
		dir := imagesDir
		if plan.Kind == "disk" {
			dir = disksDir
			if plan, err = s.planDisk(name); err != nil {
				return err
			}
			if err := w.note(plan.unnamed...); err != nil {
				return err
			}
		} else if plan, err = s.planImage(name); err != nil {
			return err
		}
		out := w.path("removed")
		if err := s.fs.Rename(s.path(dir, name), out); err != nil {
			return err
		}
		if err := s.fs.SyncDir(s.path(dir)); err != nil {
			return errors.Join(err, w.moveBack(out, s.path(dir, name), dir))
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return plan, nil
}
