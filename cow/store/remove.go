package store

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/google/uuid"
)

// Removal is the plan or the result of Remove.
type Removal struct {
	Name  string `json:"name"`
	Kind  string `json:"kind"`  // "disk" or "image"
	Freed int64  `json:"freed"` // bytes given back to the file system
	// Layers are removed. Kept are layers that stay because other disks use them or because they
	// are outside the store.
	Layers []uuid.UUID `json:"layers"`
	Kept   []uuid.UUID `json:"kept"`
	// Damaged: the disk's manifest was missing or damaged, and no layer is removed.
	Damaged bool `json:"damaged,omitempty"`

	txnDir string // directory in tmp/ with all that is removed; empty: none
}

// PlanRemove returns what Remove would do, or its error.
func (s *Store) PlanRemove(name string) (*Removal, error) {
	if err := CheckName("disk", name); err != nil {
		return nil, err
	}
	if t := s.notDirectory(KindImage, name); t != nil {
		return nil, t.Err()
	}
	if exists, err := s.exists(s.path(imagesDir, name)); err != nil {
		return nil, err
	} else if exists {
		v, err := s.surveyReadOnly()
		if err != nil {
			return nil, err
		}
		return s.planImage(v, name)
	}
	return s.planDisk(name)
}

// removableDisk returns the manifest of a disk that nobody has open.
func (s *Store) removableDisk(name string) (*Manifest, error) {
	if _, serving := s.Serving(name); serving {
		return nil, s.inUse(name)
	}
	return s.Disk(name)
}

func (s *Store) planImage(v *survey, name string) (*Removal, error) {
	link, err := s.isLink(imagesDir, name)
	if err != nil {
		return nil, err
	}
	if err := s.ownName(v, name, link); err != nil {
		return nil, err
	}
	users, away, err := v.imageUsers(name)
	if err != nil {
		return nil, fmt.Errorf("image %q: cannot determine whether disks use it: %w", name, err)
	}
	if len(users) > 0 {
		noun := "disk"
		if len(users) > 1 {
			noun = "disks"
		}
		return nil, fmt.Errorf("image %q is %w: base of %s %s\nit stays as long as a disk lies on it: %s shows them",
			name, ErrInUse, noun, strings.Join(users, ", "), s.command("tree", name))
	}
	if len(away) > 0 {
		return nil, fmt.Errorf("image %q is %w: it is the base of %s, whose directory was in %s and was moved away without rm\nput it back; if it is gone for good, see --prune in \"cowblk help check\"",
			name, ErrInUse, strings.Join(away, ", "), PathText(s.path(disksDir)))
	}
	var freed int64
	if !link {
		freed = s.allocated(s.ImageData(name))
	}
	return &Removal{Name: name, Kind: "image", Freed: freed, Layers: []uuid.UUID{}, Kept: []uuid.UUID{}}, nil
}

func (s *Store) planDisk(name string) (*Removal, error) {
	m, err := s.removableDisk(name)
	if err != nil {
		return nil, err
	}
	v, err := s.surveyReadOnly()
	if err != nil {
		return nil, err
	}
	return s.planWith(v, m)
}

// planWith plans the removal of a disk from a survey.
func (s *Store) planWith(v *survey, m *Manifest) (*Removal, error) {
	lastNeeded, _, err := v.needed(m, 0, m.Name)
	if err != nil {
		return nil, fmt.Errorf("disk %q: cannot determine whether other disks use its layers: %w", m.Name, err)
	}
	plan := &Removal{Name: m.Name, Kind: "disk", Layers: []uuid.UUID{}, Kept: []uuid.UUID{}}
	for i := range m.Layers {
		l := &m.Layers[i]
		if i > lastNeeded {
			plan.Freed += s.storeBytes(l)
		}
		if i > lastNeeded && l.inStore() {
			plan.Layers = append(plan.Layers, l.UUID)
		} else {
			plan.Kept = append(plan.Kept, l.UUID)
		}
	}
	return plan, nil
}

// storeBytes returns the space of a layer's files in the store, in bytes on the file system.
func (s *Store) storeBytes(l *Layer) int64 {
	p := s.paths(l)
	if l.inStore() {
		return s.allocated(p.Map) + s.allocated(p.Data)
	}
	return s.allocated(p.Checksums)
}

// Remove removes a disk with the layers that only it uses, or an image that no disk uses. It needs
// no space on the file system. Errors: ErrNotFound, ErrInUse (a process has the disk open, disks
// use the image), ErrRefused (the disk's manifest is unreadable; for an image, that of any disk).
func (s *Store) Remove(ctx context.Context, name string) (r *Removal, err error) {
	defer s.fillReserve()
	return r, s.withReserve(0, func() error {
		r, err = s.removeOnce(ctx, name)
		return err
	})
}

// removeOnce makes one attempt of Remove. After an error nothing has changed.
func (s *Store) removeOnce(ctx context.Context, name string) (*Removal, error) {
	if err := CheckName("disk", name); err != nil {
		return nil, err
	}
	if t := s.notDirectory(KindImage, name); t != nil {
		return nil, t.Err()
	}
	image, err := s.exists(s.path(imagesDir, name))
	if err != nil {
		return nil, err
	}
	if !image {
		if _, err := s.removableDisk(name); err != nil {
			return nil, err // before a lock file is created
		}
		return s.removeDisk(ctx, name)
	}
	var plan *Removal
	err = s.locked(ctx, func() error {
		_ = s.recoverStaleTxns()
		v, err := s.survey()
		if err != nil {
			return err
		}
		if plan, err = s.planImage(v, name); err != nil {
			return err
		}
		if link, err := s.isLink(imagesDir, name); err != nil {
			return err
		} else if link {
			return s.removeLink(imagesDir, name)
		}
		plan.txnDir, err = s.moveOut(imagesDir, name)
		return err
	})
	if err != nil {
		return nil, err
	}
	s.removeTxn(plan)
	return plan, nil
}

// removeDisk renames the disk's directory, with its manifest and lock, to tmp/. That removes the
// disk, and the manifest there lists the layers to remove. The store is locked for renames only.
func (s *Store) removeDisk(ctx context.Context, name string) (plan *Removal, err error) {
	lock, err := s.LockDisk(name)
	if err != nil {
		return nil, err
	}
	defer lock.Unlock()
	if err := s.recoverKeeping(ctx, name, 0); err != nil {
		return nil, err
	}
	err = s.locked(ctx, func() error {
		_ = s.recoverStaleTxns() // an interrupted promotion has left a layer on the disk's head
		m, err := s.Disk(name)
		if err != nil {
			return err
		}
		v, err := s.survey()
		if err != nil {
			return err
		}
		if plan, err = s.planWith(v, m); err != nil {
			return err
		}
		left, err := s.moveOutDisk(v, m)
		if err != nil {
			return err
		}
		v.dropDisk(name)
		if err := v.releaseAbove(m, 0, left, m.Name); err != nil {
			s.log.Warn("layers of a removed disk are left, the next command will try again", "disk", name, "err", err)
			return nil
		}
		plan.txnDir = left
		return nil
	})
	if err != nil {
		return nil, err
	}
	s.removeTxn(plan)
	return plan, nil
}

// moveOut durably renames a disk or an image to tmp/ and returns its path there. After an error it
// undoes the rename. The caller holds the store's lock.
func (s *Store) moveOut(dir, name string) (string, error) {
	if err := s.checkMovable(dir, name); err != nil {
		return "", err
	}
	if err := s.fs.MkdirAll(s.path(tmpDir), 0o755); err != nil {
		return "", err
	}
	out := s.path(tmpDir, removalPrefix+uuid.NewString())
	if err := s.fs.Rename(s.path(dir, name), out); err != nil {
		return "", err
	}
	if err := s.fs.SyncDir(s.path(dir)); err != nil {
		// If that fails too, or a power cut undoes it, the next command finishes the removal.
		return "", errors.Join(err, s.fs.Rename(out, s.path(dir, name)), s.fs.SyncDir(s.path(dir)))
	}
	return out, nil
}

// checkMovable refuses a disk or an image whose directory contains a directory with a UUID as its
// name: in tmp/ it would be taken for a layer that was moved there.
func (s *Store) checkMovable(dir, name string) error {
	path := s.path(dir, name)
	entries, err := s.fs.ReadDir(path)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() && isUUID(e.Name()) {
			return &Mismatch{File: path, What: "directories in it", Expected: "none", Found: e.Name(), Advice: "it is not cowblk's: move it elsewhere first"}
		}
	}
	return nil
}

// moveOutDisk is moveOut for a disk. If the disk's directory is a symbolic link, moveOutDisk
// creates a directory with a copy of the manifest and moves the link into it. The target of the
// link stays.
func (s *Store) moveOutDisk(v *survey, m *Manifest) (string, error) {
	if d := v.disks[m.Name]; d == nil || !d.link {
		return s.moveOut(disksDir, m.Name)
	}
	out := s.path(tmpDir, removalPrefix+uuid.NewString())
	if err := s.fs.MkdirAll(out, dirPerm); err != nil {
		return "", err
	}
	if err := s.writeDocument(filepath.Join(out, diskFile), m); err != nil {
		return "", errors.Join(err, s.fs.RemoveAll(out))
	}
	link := filepath.Join(out, linkFile)
	if err := s.fs.Rename(s.path(disksDir, m.Name), link); err != nil {
		return "", errors.Join(err, s.fs.RemoveAll(out))
	}
	if err := s.fs.SyncDir(s.path(disksDir)); err != nil {
		return "", errors.Join(err, s.fs.Rename(link, s.path(disksDir, m.Name)), s.fs.SyncDir(s.path(disksDir)))
	}
	s.log.Warn("the disk's directory was a symbolic link: the link is removed, and the directory that it led to stays", "disk", m.Name)
	return out, nil
}

// removeTxn frees the space of a removal, after the removal is complete.
func (s *Store) removeTxn(plan *Removal) {
	if plan.txnDir == "" {
		return
	}
	if err := s.removeTxnDir(plan.txnDir); err != nil {
		s.log.Warn("cannot clean up, the next command will try again", "directory", plan.txnDir, "err", err)
	}
}
