package store

import (
	"context"
	"errors"
	"path/filepath"

	"github.com/google/uuid"
)

// removableDisk returns the manifest of a disk that nobody has open.
func (s *Store) removableDisk(name string) (*Manifest, error) {
	if _, serving := s.Serving(name); serving {
		return nil, s.inUse(name)
	}
	return s.Disk(name)
}

// planDisk plans the removal of a disk from a survey.
func (s *Store) planDisk(v *survey, m *Manifest) (*Removal, error) {
	r, err := v.planRelease(m, 0)
	if err != nil {
		return nil, err
	}
	return &Removal{Name: m.Name, Kind: KindDisk, Freed: r.freed, Layers: r.layers, Kept: r.kept},
		nil
}

// removeDisk renames the disk's directory, with its manifest and lock, to tmp/. That removes the
// disk, and the manifest there lists the layers to remove. The store is locked for renames only.
func (s *Store) removeDisk(ctx context.Context, name string) (plan *Removal, err error) {
	if _, err := s.removableDisk(name); err != nil {
		return nil, err // before a lock file is created
	}
	lock, err := s.LockDisk(name)
	if err != nil {
		return nil, err
	}
	defer lock.Unlock()
	if err := s.recoverKeeping(ctx, name, 0); err != nil {
		return nil, err
	}
	err = s.locked(ctx, func() error {
		_ = s.recoverStaleTxns("") // an interrupted promotion has left a layer on the disk's head
		m, err := s.Disk(name)
		if err != nil {
			return err
		}
		v, err := s.survey(true)
		if err != nil {
			return err
		}
		if plan, err = s.planDisk(v, m); err != nil {
			return err
		}
		left, err := s.moveOutDisk(v, m)
		if err != nil {
			return err
		}
		v.dropDisk(name)
		if err := v.releaseAbove(m, 0, left, m.Name); err != nil {
			s.log.Warn("layers of a removed disk are left, the next command will try again", "disk",
				name, "err", err)
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
	unresolved, err := s.renameDurably(s.path(disksDir, m.Name), filepath.Join(out, linkFile),
		disksDir)
	if err != nil && !unresolved {
		err = errors.Join(err, s.fs.RemoveAll(out))
	}
	if err != nil {
		return "", err
	}
	s.log.Warn("the disk's directory was a symbolic link: the link is removed, and the directory that it led to stays", "disk", m.Name)
	return out, nil
}
