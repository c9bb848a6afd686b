package store

import (
	"context"

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
	image, err := s.isImage(name)
	if err != nil {
		return nil, err
	}
	var m *Manifest
	if !image {
		if m, err = s.removableDisk(name); err != nil {
			return nil, err
		}
	}
	v, err := s.survey(false)
	switch {
	case err != nil:
		return nil, err
	case image:
		return s.planImage(v, name)
	}
	return s.planDisk(v, m)
}

// isImage reports whether an image has the name.
func (s *Store) isImage(name string) (bool, error) {
	if err := CheckName("disk", name); err != nil {
		return false, err
	}
	if t := s.notDirectory(KindImage, name); t != nil {
		return false, t.Err()
	}
	return s.exists(s.path(imagesDir, name))
}

// Remove removes a disk with the layers that only it uses, or an image that no disk uses. It needs
// no space on the file system. Errors: ErrNotFound, ErrInUse (a process has the disk open, disks
// use the image), ErrRefused (the disk's manifest is unreadable; for an image, that of any disk).
func (s *Store) Remove(ctx context.Context, name string) (r *Removal, err error) {
	defer s.fillReserve()
	err = s.withReserve(0, func() error {
		r, err = s.removeOnce(ctx, name)
		return err
	})
	return r, err
}

// removeOnce makes one attempt of Remove. After an error nothing has changed.
func (s *Store) removeOnce(ctx context.Context, name string) (*Removal, error) {
	image, err := s.isImage(name)
	switch {
	case err != nil:
		return nil, err
	case image:
		return s.removeImage(ctx, name)
	}
	return s.removeDisk(ctx, name)
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
	// If the undo of a failure fails too, or a power cut undoes it, the next command finishes the
	// removal.
	if _, err := s.renameDurably(s.path(dir, name), out, dir); err != nil {
		return "", err
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
			return refused(path, "directories in it", "none", e.Name(),
				"it is not cowblk's: move it elsewhere first")
		}
	}
	return nil
}

// removeTxn frees the space of a removal, after the removal is complete. A disk's lock, whose file
// is in the directory, is still held: other processes leave the directory alone.
func (s *Store) removeTxn(plan *Removal) {
	if plan.txnDir == "" {
		return
	}
	if err := s.removeTxnDir(plan.txnDir); err != nil {
		s.log.Warn("cannot clean up, the next command will try again", "directory", plan.txnDir,
			"err", err)
	}
}
