package store

import (
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"

	"github.com/google/uuid"

	"cowblk/cow/shell"
)

// Queries of a survey: which disks use a layer or an image.

// users returns the sorted names of the disks that name a layer, without the disk except.
func (v *survey) users(id uuid.UUID, except string) []string {
	if v.named == nil {
		v.named = map[uuid.UUID][]string{}
		for _, name := range slices.Sorted(maps.Keys(v.disks)) {
			if d := v.disks[name]; d.err == nil {
				for _, id := range d.entry.Layers {
					v.named[id] = append(v.named[id], name)
				}
			}
		}
	}
	return slices.DeleteFunc(slices.Clone(v.named[id]), func(name string) bool {
		return name == except
	})
}

// mayUse names an unreadable or missing disk that keeps a layer; empty: none.
func (v *survey) mayUse(id uuid.UUID, except string) string {
	if name := v.damagedUser(id, except); name != "" {
		return fmt.Sprintf("the manifest of disk %q cannot be read", name)
	}
	for _, e := range v.away {
		if e.names(id) {
			return fmt.Sprintf("the directory of disk %q was moved away without rm", e.Name)
		}
	}
	return ""
}

// damagedUser returns a disk with an unreadable manifest that may name a layer; empty: none.
func (v *survey) damagedUser(id uuid.UUID, except string) string {
	for _, name := range slices.Sorted(maps.Keys(v.disks)) {
		if d := v.disks[name]; name != except && d.err != nil && (d.unknown || d.entry.names(id)) {
			return name
		}
	}
	return ""
}

// awayUses reports whether a disk that was moved away keeps a layer.
func (v *survey) awayUses(id uuid.UUID) bool {
	return slices.ContainsFunc(v.away, func(e *indexEntry) bool { return e.names(id) })
}

// promoted reports whether a layer was the last known head of an unreadable disk. A layer on it may
// belong to that disk too.
func (v *survey) promoted(id uuid.UUID, except string) bool {
	for name, d := range v.disks {
		if name != except && d.err != nil && d.entry.Head == id && id != uuid.Nil {
			return true
		}
	}
	return false
}

// damagedManifests returns the errors of the unreadable manifests of the named disks; no names: of
// all.
func (v *survey) damagedManifests(names []string) (damage, transient error) {
	for name, d := range v.disks {
		switch {
		case d.err == nil || len(names) > 0 && !slices.Contains(names, name):
		case d.transient:
			transient = errors.Join(transient, d.err)
		default:
			damage = errors.Join(damage, d.err)
		}
	}
	return damage, transient
}

// imageUsers returns the sorted names of the disks that use an image, and of those that were moved
// away. After an error the lists may be incomplete.
func (v *survey) imageUsers(image string) (names []string, away []string, err error) {
	for name, d := range v.disks {
		switch {
		case d.err != nil:
			err = errors.Join(err, fmt.Errorf("%s: %w", shell.Text(filepath.Join(disksDir, name)),
				d.err))
		case d.entry.Image == image:
			names = append(names, name)
		}
	}
	for _, e := range v.away {
		if e.Image == image {
			away = append(away, e.Name)
		}
	}
	slices.Sort(names)
	slices.Sort(away)
	return names, slices.Compact(away), err
}
