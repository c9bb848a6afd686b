package store

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/google/uuid"

	"cowblk/cow/layer"
)

// parents returns the layers below unnamed layers: leftovers, or those of a promotion in progress.
// It ignores the layers in own and those that manifests name.
func (v *survey) parents(own []uuid.UUID) (map[uuid.UUID]bool, error) {
	unnamed, err := v.unnamedLayers(own)
	if err != nil {
		return nil, err
	}
	on := map[uuid.UUID]bool{}
	for id, h := range unnamed {
		if h != nil && h.UUID == id && h.Parent != uuid.Nil {
			on[h.Parent] = true
		}
	}
	return on, nil
}

// parentOf returns the parent in the header of a layer in layers/; zero: none, or an unreadable
// header.
func (s *Store) parentOf(id uuid.UUID) uuid.UUID {
	h, err := s.headerOf(id)
	if err != nil || h.UUID != id {
		return uuid.Nil
	}
	return h.Parent
}

// needed returns the index of the highest layer of m that others need if m's disk gives up the
// layers from index low on; low-1 if none is needed. why names an unreadable or missing disk that
// may need the layer. It does not count the disk named except, which is m's or empty.
func (v *survey) needed(m *Manifest, low int, except string) (top int, why string, err error) {
	own := m.uuids()
	on, err := v.parents(own)
	if err != nil {
		return 0, "", err
	}
	for i := len(m.Layers) - 1; i >= low; i-- {
		id := m.Layers[i].UUID
		if on[id] || len(v.users(id, except)) > 0 {
			return i, "", nil
		}
		if why := v.mayUse(id, except); why != "" {
			return i, why, nil
		}
		if slices.ContainsFunc(own[:i], func(below uuid.UUID) bool {
			return v.promoted(below, except)
		}) {
			return i, "the manifest of a disk that lies on the same layers cannot be read", nil
		}
	}
	return low - 1, "", nil
}

// plannedRelease is what releaseAbove would do.
type plannedRelease struct {
	freed        int64 // bytes on the file system
	layers, kept []uuid.UUID
}

// planRelease plans that m's disk gives up its layers from index low on.
func (v *survey) planRelease(m *Manifest, low int) (*plannedRelease, error) {
	lastNeeded, _, err := v.needed(m, low, m.Name)
	if err != nil {
		return nil, fmt.Errorf("disk %q: cannot determine whether other disks use its layers: %w",
			m.Name, err)
	}
	plan := &plannedRelease{layers: []uuid.UUID{}, kept: []uuid.UUID{}}
	for i := low; i < len(m.Layers); i++ {
		l := &m.Layers[i]
		if i > lastNeeded {
			plan.freed += v.s.storeBytes(l)
		}
		if i > lastNeeded && l.inStore() {
			plan.layers = append(plan.layers, l.UUID)
		} else {
			plan.kept = append(plan.kept, l.UUID)
		}
	}
	return plan, nil
}

// moveToTxn moves a layer to the directory to, whose removal deletes it. Nothing names the layer
// any more, durably, and no layer lies on it. stays: its directory cannot be moved because it is a
// mount point, and is left as it is.
func (s *Store) moveToTxn(id uuid.UUID, to string) (stays bool, err error) {
	from := s.path(layersDir, id.String())
	// On failure the shared map stays in memory until the kernel stops.
	_ = layer.RemoveShared(s.fs, layer.Paths{Map: s.path(layersDir, id.String(), mapFile)})
	err = s.fs.Rename(from, filepath.Join(to, id.String()))
	switch {
	case err == nil || errors.Is(err, fs.ErrNotExist):
		return false, nil
	case errors.Is(err, syscall.EBUSY) || errors.Is(err, syscall.EXDEV):
		s.log.Warn("a layer is kept: its directory is a mount point, or on another file system",
			"directory", from, "err", err)
		return true, nil
	}
	// A full file system may have no space for one more name. The directory may hold files that are
	// not cowblk's.
	left, err := s.removeAllowed(layerLayout, from)
	if left != "" && err == nil {
		s.log.Warn("the directory of a layer is not removed: it contains files that are not cowblk's", "directory", from, "found", left)
	}
	return false, err
}

// releaseAbove durably moves the unneeded layers of m, from the top down to index low, to the
// directory to. except is as for needed.
func (v *survey) releaseAbove(m *Manifest, low int, to, except string) error {
	lastNeeded, why, err := v.needed(m, low, except)
	if err != nil {
		return err
	}
	for i := len(m.Layers) - 1; i > lastNeeded; i-- {
		if stays, err := v.s.moveToTxn(m.Layers[i].UUID, to); err != nil {
			return err
		} else if stays {
			break // those below it stay too
		}
	}
	if why != "" {
		v.s.log.Warn("layers are kept: cowblk check shows those that no disk names", "layers_of",
			m.Name, "err", why)
	}
	if lastNeeded == len(m.Layers)-1 {
		return nil
	}
	return v.s.syncLayers()
}

// release moves those layers of an interrupted command to the directory to that no manifest names
// and no layer lies on.
func (v *survey) release(layers []uuid.UUID, to string) error {
	var reasons []string
	free := slices.DeleteFunc(slices.Clone(layers), func(id uuid.UUID) bool {
		if len(v.users(id, "")) > 0 {
			return true
		}
		why := v.mayUse(id, "")
		if why != "" && !slices.Contains(reasons, why) {
			reasons = append(reasons, why)
		}
		return why != ""
	})
	for _, why := range reasons {
		v.s.log.Warn("layers of an interrupted command are kept: cowblk check shows those that no disk names", "err", why)
	}
	// In any order: repeat for layers that were below others.
	taken := false
	for {
		on, err := v.parents(nil)
		if err != nil {
			return err
		}
		i := slices.IndexFunc(free, func(id uuid.UUID) bool { return !on[id] })
		if i < 0 {
			break
		}
		if _, err := v.s.moveToTxn(free[i], to); err != nil {
			return err
		}
		free, taken = slices.Delete(free, i, i+1), true
	}
	if !taken {
		return nil
	}
	return v.s.syncLayers()
}

// restoreLayers moves layers that an interrupted command took out back to layers/ if a manifest
// names them again: somebody has restored the manifest. dir is a directory in tmp/.
func (s *Store) restoreLayers(dir string) error {
	list, err := s.fs.ReadDir(dir)
	if err != nil {
		return err
	}
	var out []uuid.UUID
	from := map[uuid.UUID]string{}
	for _, e := range list {
		if id, err := uuid.Parse(e.Name()); err == nil && e.IsDir() {
			out, from[id] = append(out, id), filepath.Join(dir, e.Name())
		}
		// The removal of a single layer by an earlier version.
		if id, err := uuid.Parse(filepath.Base(dir)); err == nil && e.Name() == mapFile &&
			!e.IsDir() {
			out, from[id] = append(out, id), dir
		}
	}
	if len(out) == 0 {
		return nil
	}
	v, err := s.survey(true)
	if err != nil {
		return err
	}
	back := false
	for _, id := range out {
		if len(v.users(id, "")) == 0 && v.damagedUser(id, "") == "" {
			continue
		}
		to := s.path(layersDir, id.String())
		if exists, err := s.exists(to); err != nil {
			return err
		} else if exists {
			continue
		}
		if err := s.fs.Rename(from[id], to); err != nil {
			return fmt.Errorf("put layer %s back, which a disk names: %w", id, err)
		}
		s.log.Info("a layer that an interrupted command was to remove is kept: a disk names it",
			"layer", id)
		back = true
	}
	if back {
		return s.syncLayers()
	}
	return nil
}

// syncLayers makes renames into and out of layers/ durable.
func (s *Store) syncLayers() error {
	err := s.fs.SyncDir(s.path(layersDir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// SharedLayers returns how many layers of m, from the oldest on, other disks name too. It is
// informative only: it uses the index, which misses changes by hand or by earlier versions until
// the next removal or rollback.
func (s *Store) SharedLayers(m *Manifest) (int, error) {
	x := s.readIndex()
	names, err := s.names(disksDir)
	if err != nil {
		return 0, err
	}
	var others []*indexEntry
	for _, name := range names {
		e := x.entries[name]
		if name == m.Name {
			continue
		}
		if e == nil {
			other, err := s.Disk(name)
			if err != nil {
				continue // reported by list and check
			}
			e = entryOf(name, other)
		}
		others = append(others, e)
	}
	for i := len(m.Layers) - 1; i >= 0; i-- {
		id := m.Layers[i].UUID
		for _, e := range others {
			if !e.names(id) {
				continue
			}
			// An entry may be out of date.
			if now, err := s.Disk(e.Name); err == nil && slices.ContainsFunc(now.Layers,
				func(l Layer) bool { return l.UUID == id }) {
				return i + 1, nil
			}
		}
	}
	return 0, nil
}
