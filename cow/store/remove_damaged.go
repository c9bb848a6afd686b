package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/google/uuid"

	"cowblk/cow/finding"
)

// PlanRemoveDamaged returns what RemoveDamaged would do, or its error.
func (s *Store) PlanRemoveDamaged(name string) (*Removal, error) {
	if err := CheckName("disk", name); err != nil {
		return nil, err
	}
	if _, serving := s.Serving(name); serving {
		return nil, s.inUse(name)
	}
	return s.planDamaged(name)
}

func (s *Store) planDamaged(name string) (*Removal, error) {
	names, err := s.names(disksDir)
	if err != nil {
		return nil, err
	}
	if !slices.Contains(names, name) {
		return nil, s.notFound("disk", name)
	}
	_, err = s.Disk(name)
	var found *finding.Finding
	switch {
	case err == nil:
		return nil, finding.Invalidf(
			"disk %q: expected one whose manifest is damaged or missing, found one that can be read: leave --damaged out", name)
	case errors.As(err, &found) && found.What == versionOfDocument:
		return nil, err // a document of another program version
	case !isDamage(err):
		return nil, fmt.Errorf("disk %q: cannot determine whether its manifest is damaged: %w",
			name, err)
	}
	return &Removal{Name: name, Kind: KindDisk, Damaged: true, Layers: []uuid.UUID{},
		Kept: []uuid.UUID{}}, nil
}

// RemoveDamaged removes a disk whose manifest is missing or damaged, so that its name is free. It
// is unknown which layers were its own: all stay, and Check lists those that no disk names. Errors:
// ErrNotFound, ErrInUse, ErrInvalid (the manifest is readable), ErrRefused (a newer version's
// manifest).
func (s *Store) RemoveDamaged(ctx context.Context, name string) (r *Removal, err error) {
	defer s.fillReserve()
	err = s.withReserve(0, func() error {
		r, err = s.removeDamagedOnce(ctx, name)
		return err
	})
	return r, err
}

// removeDamagedOnce makes one attempt of RemoveDamaged. After a lack of space nothing has changed.
func (s *Store) removeDamagedOnce(ctx context.Context, name string) (plan *Removal, err error) {
	if _, err := s.PlanRemoveDamaged(name); err != nil {
		return nil, err // before a lock file is created
	}
	lock, err := s.LockDisk(name)
	if err != nil {
		return nil, err
	}
	defer lock.Unlock()
	err = s.locked(ctx, func() error {
		_ = s.recoverStaleTxns("")
		if plan, err = s.planDamaged(name); err != nil {
			return err
		}
		v, err := s.survey(true)
		if err != nil {
			return err
		}
		if d := v.disks[name]; d != nil && d.link {
			v.dropDisk(name)
			return s.removeLink(disksDir, name)
		}
		if err := s.checkMovable(disksDir, name); err != nil {
			return err
		}
		// Durably rename the manifest first: recovery would remove the layers that it names.
		dir := s.path(disksDir, name)
		if err := s.fs.Rename(s.path(disksDir, name, diskFile), s.path(disksDir, name,
			damagedFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := s.fs.SyncDir(dir); err != nil {
			return err
		}
		// Before the rename: the index would list the disk as moved away.
		v.dropDisk(name)
		plan.txnDir, err = s.moveOut(disksDir, name)
		return err
	})
	if err != nil {
		return nil, err
	}
	s.removeTxn(plan)
	return plan, nil
}
