package store

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"

	"github.com/google/uuid"

	"cowblk/cow/layer"
)

// parents are the layers on which layers lie that no manifest names: left over, or of a promotion that is going on. own
// are layers that are not to be counted, like those that manifests name.
func (v *survey) parents(own []uuid.UUID) (map[uuid.UUID]bool, error) {
	s := v.s
	list, err := s.fs.ReadDir(s.path(layersDir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	skip := map[uuid.UUID]bool{}
	for _, id := range own {
		skip[id] = true
	}
	on := map[uuid.UUID]bool{}
	for _, e := range list {
		id, err := uuid.Parse(e.Name())
		if err != nil || skip[id] || len(v.users(id, "")) > 0 {
			continue
		}
		if parent := s.parentOf(id); parent != uuid.Nil {
			on[parent] = true
		}
	}
	return on, nil
}

// parentOf is what the header of a layer in layers/ says that it lies on; zero: nothing, or it cannot be read.
func (s *Store) parentOf(id uuid.UUID) uuid.UUID {
	h, err := layer.ReadHeader(s.fs, s.path(layersDir, id.String(), mapFile))
	if err != nil || h.UUID != id {
		return uuid.Nil
	}
	return h.Parent
}

// needed returns the index of the highest layer of m that is still needed when m's disk gives up those from index low on;
// low-1 if none of them is. why says which disk needs it that cannot be read or is not there; empty: another one. What a
// disk called except names does not count: that of m, or empty.
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
		if slices.ContainsFunc(own[:i], func(below uuid.UUID) bool { return v.promoted(below, except) }) {
			return i, "the manifest of a disk that lies on the same layers cannot be read", nil
		}
	}
	return low - 1, "", nil
}

// moveToTxn moves a layer that nothing names or lies on to the directory to, where it is garbage. Who has named it has
// durably stopped.
func (s *Store) moveToTxn(id uuid.UUID, to string) error {
	from := s.path(layersDir, id.String())
	// What cannot be removed takes memory until the kernel stops.
	_ = layer.RemoveShared(s.fs, layer.Paths{Map: s.path(layersDir, id.String(), mapFile)})
	if err := s.fs.Rename(from, filepath.Join(to, id.String())); err != nil && !errors.Is(err, fs.ErrNotExist) {
		// A full file system may not have room for one more name.
		return s.fs.RemoveAll(from)
	}
	return nil
}

// releaseAbove takes out the layers of m from the top down to index low that are not needed any more, and makes that
// durable. except is as for needed.
func (v *survey) releaseAbove(m *Manifest, low int, to, except string) error {
	stays, why, err := v.needed(m, low, except)
	if err != nil {
		return err
	}
	for i := len(m.Layers) - 1; i > stays; i-- {
		if err := v.s.moveToTxn(m.Layers[i].UUID, to); err != nil {
			return err
		}
	}
	if why != "" {
		v.s.log.Warn("layers are kept: cowblk check shows those that no disk names", "layers_of", m.Name, "why", why)
	}
	if stays == len(m.Layers)-1 {
		return nil
	}
	return v.s.syncLayers()
}

// release takes out those of the layers of an interrupted command that no manifest names and nothing lies on.
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
		v.s.log.Warn("layers of an interrupted command are kept: cowblk check shows those that no disk names", "why", why)
	}
	// In whatever order they are: once more for those that lay under others.
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
		if err := v.s.moveToTxn(free[i], to); err != nil {
			return err
		}
		free, taken = slices.Delete(free, i, i+1), true
	}
	if !taken {
		return nil
	}
	return v.s.syncLayers()
}

// restoreLayers moves layers that an interrupted command has taken out, and that a manifest names again, back among the
// store's: somebody has restored a manifest since. dir is a work directory.
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
		// An earlier version's removal of a single layer.
		if id, err := uuid.Parse(filepath.Base(dir)); err == nil && e.Name() == mapFile && !e.IsDir() {
			out, from[id] = append(out, id), dir
		}
	}
	if len(out) == 0 {
		return nil
	}
	v, err := s.survey()
	if err != nil {
		return err
	}
	back := false
	for _, id := range out {
		if len(v.users(id, "")) == 0 && v.damagedUser(id, "") == "" {
			continue
		}
		to := s.path(layersDir, id.String())
		if there, err := s.exists(to); err != nil {
			return err
		} else if there {
			continue
		}
		if err := s.fs.Rename(from[id], to); err != nil {
			return fmt.Errorf("put layer %s back, which a disk names: %w", id, err)
		}
		s.log.Info("a layer that an interrupted command was to remove is kept: a disk names it", "layer", id)
		back = true
	}
	if back {
		return s.syncLayers()
	}
	return nil
}

// syncLayers makes durable what has been renamed into and out of layers/.
func (s *Store) syncLayers() error {
	err := s.fs.SyncDir(s.path(layersDir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// SharedLayers returns how many layers of m, from the oldest on, other disks name, too. It is for information, and goes
// by the index where a disk is in it: a manifest that was changed by hand, or by an earlier version, counts from the next
// removal or rollback on.
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
				continue // list and check say so
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
			// An entry may be of another time.
			if now, err := s.Disk(e.Name); err == nil && slices.ContainsFunc(now.Layers, func(l Layer) bool { return l.UUID == id }) {
				return i + 1, nil
			}
		}
	}
	return 0, nil
}
