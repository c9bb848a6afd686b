package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"

	"github.com/google/uuid"

	"cowblk/cow/layer"
	"cowblk/cow/shell"
)

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
		return nil, fmt.Errorf(
			"image %q is %w: base of %s %s\nit stays as long as a disk lies on it: %s shows them",
			name, ErrInUse, noun, strings.Join(users, ", "), s.command("tree", name))
	}
	if len(away) > 0 {
		return nil, fmt.Errorf(
			"image %q is %w: it is the base of %s, whose directory was in %s and was moved away without rm\nput it back; if it is gone for good, see --prune in \"cowblk help check\"",
			name, ErrInUse, strings.Join(away, ", "), shell.Text(s.path(disksDir)))
	}
	if err := v.unnamedOnImage(name); err != nil {
		return nil, err
	}
	var freed int64
	if !link {
		freed = s.allocated(s.ImageData(name))
	}
	return &Removal{Name: name, Kind: "image", Freed: freed, Layers: []uuid.UUID{},
		Kept: []uuid.UUID{}}, nil
}

// unnamedOnImage returns an ErrInUse if a layer that no disk names lies on the image, or may: its
// disk may have been moved away, and the index may not know it.
func (v *survey) unnamedOnImage(name string) error {
	unnamed, err := v.unnamedLayers(nil)
	if err != nil {
		return fmt.Errorf("image %q: cannot determine whether layers lie on it: %w", name, err)
	}
	image, ierr := v.s.Image(name)
	for id, h := range unnamed {
		if h != nil && (h.Base == layer.Fingerprint{} || ierr == nil &&
			h.Base != image.Fingerprint) {
			continue
		}
		return fmt.Errorf(
			"image %q is %w: layer %s, which no disk names, lies on it or may: its disk may have been moved away without rm\nput the disk's directory back; if it is gone for good, see --prune in \"cowblk help check\"",
			name, ErrInUse, id)
	}
	return nil
}

// removeImage makes one attempt to remove an image.
func (s *Store) removeImage(ctx context.Context, name string) (plan *Removal, err error) {
	err = s.locked(ctx, func() error {
		_ = s.recoverStaleTxns("")
		v, err := s.survey(true)
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

// isLink reports whether an entry of images/ or disks/ is a symbolic link. A removal must not go
// through it: what it leads to may be another image, or no cowblk's at all.
func (s *Store) isLink(dir, name string) (bool, error) {
	fi, err := s.lstat(s.path(dir, name))
	return err == nil && fi.Mode().Type() == fs.ModeSymlink, err
}

// removeLink durably removes a symbolic link that stands for a directory of images/ or disks/. Its
// target stays. The caller holds the store's lock.
func (s *Store) removeLink(dir, name string) error {
	path := s.path(dir, name)
	if err := s.fs.Remove(path); err != nil {
		return err
	}
	s.log.Warn("the directory was a symbolic link: the link is removed, and the directory that it led to stays", "path", path)
	if err := s.fs.SyncDir(s.path(dir)); err != nil {
		return fmt.Errorf("%s: the symbolic link is removed, but a power cut may bring it back: %w",
			shell.Text(path), err)
	}
	return nil
}

// ownName refuses the removal of an image directory that may be another image, renamed by hand:
// disks name it by the name in image.json. A link to another image's directory may go while that
// directory has its own name.
func (s *Store) ownName(v *survey, name string, link bool) error {
	_, err := s.Image(name)
	if err == nil {
		return nil
	}
	var other *nameError
	if errors.As(err, &other) {
		if link {
			at, lerr := s.isLink(imagesDir, other.found)
			exists, xerr := s.exists(s.path(imagesDir, other.found))
			if lerr == nil && xerr == nil && exists && !at {
				return nil
			}
			if users, away, uerr := v.imageUsers(other.found); uerr == nil &&
				len(users)+len(away) == 0 {
				return nil
			}
		}
		return err
	}
	if !isDamage(err) {
		return fmt.Errorf("image %q: cannot determine its name: %w", name, err)
	}
	// It may be any image that a disk names and that is not there.
	for _, image := range v.namedImages() {
		if exists, xerr := s.exists(s.path(imagesDir, image)); xerr != nil || !exists {
			return refused(s.path(imagesDir, name, imageFile), "description of the image",
				"one that can be read, for disks lie on an image that is not there: "+image, err,
				"restore it from a backup; if the directory was renamed, rename it back")
		}
	}
	return nil
}

// namedImages returns the sorted names of the images on which disks lie, present or moved away.
func (v *survey) namedImages() []string {
	all := map[string]bool{}
	for _, d := range v.disks {
		if d.entry != nil && d.entry.Image != "" {
			all[d.entry.Image] = true
		}
	}
	for _, e := range v.away {
		if e.Image != "" {
			all[e.Image] = true
		}
	}
	return slices.Sorted(maps.Keys(all))
}
