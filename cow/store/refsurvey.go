package store

import (
	"errors"
	"io/fs"

	"github.com/google/uuid"

	"cowblk/cow/layer"
)

// openRefs returns references that hold, made anew if need be: its cost follows the number of disks then. The store is
// locked. Its error says that the store's directories cannot be listed.
func (s *Store) openRefs() (*refs, error) {
	if r := s.validRefs(); r != nil {
		return r, nil
	}
	// Before anything else changes: what is there must not be taken for whole if this is interrupted.
	writable := s.invalidate() == nil
	r, err := s.survey()
	if err != nil {
		return nil, err
	}
	if writable && r.write() == nil {
		r.graph = nil
	}
	if r.unreadable != "" {
		s.log.Warn("a disk's manifest cannot be read: cowblk check says what is wrong", "disk", r.unreadable, "some_layers_are_kept", r.unknown)
	}
	r.stamp()
	return r, nil
}

// planRefs is openRefs for who changes nothing and has not locked the store.
func (s *Store) planRefs() (*refs, error) {
	if r := s.validRefs(); r != nil {
		r.plan = true
		return r, nil
	}
	return s.survey()
}

// survey makes references of all manifests, and of the headers of those layers that no manifest names: a manifest that
// cannot be read may name them, a promotion may be about to.
func (s *Store) survey() (*refs, error) {
	r := &refs{s: s, graph: refGraph{}, key: uuid.NewString()}
	named, heads, lower := map[uuid.UUID]bool{}, map[uuid.UUID]int{}, map[uuid.UUID]bool{}
	images, err := s.names(imagesDir)
	if err != nil {
		return nil, err
	}
	for _, name := range images {
		r.graph.node(imageRef(name))
	}
	names, err := s.names(disksDir)
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		m, err := s.Disk(name)
		if errors.Is(err, ErrNotFound) {
			there, serr := s.exists(s.path(disksDir, name))
			if serr == nil && !there {
				continue // removed since the directory was read
			}
		}
		if err != nil {
			if r.unreadable == "" {
				r.unreadable = name
			}
			continue
		}
		heads[m.Head().UUID]++
		for _, l := range m.Sealed() {
			lower[l.UUID] = true
		}
		for i, l := range m.Layers {
			named[l.UUID] = true
			r.graph.node(l.UUID.String())
			if parent := m.below(i); parent != "" {
				r.graph.add(parent, l.UUID)
			}
		}
	}
	for id, n := range heads {
		if n > 1 || lower[id] {
			r.graph.add(id.String(), id)
		}
	}
	entries, err := s.fs.ReadDir(s.path(layersDir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, e := range entries {
		id, err := uuid.Parse(e.Name())
		if err != nil || named[id] {
			continue
		}
		r.graph.node(id.String())
		parent, err := s.parentOf(id)
		switch {
		case err == nil && parent != "":
			r.graph.add(parent, id)
		case err != nil:
			r.unknown = true
		}
	}
	r.unknown = r.unknown && r.unreadable != ""
	return r, nil
}

// parentOf is what the header of a layer in layers/ says that it lies on; empty: no layer. So it is for the sums of a
// layer that lies elsewhere.
func (s *Store) parentOf(id uuid.UUID) (string, error) {
	h, err := layer.ReadHeader(s.fs, s.path(layersDir, id.String(), mapFile))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if there, serr := s.exists(s.path(layersDir, id.String(), sumsFile)); serr == nil && there {
			return "", nil
		}
		return "", err
	case err != nil:
		return "", err
	case h.UUID != id:
		return "", classify(&layer.Fault{Path: s.path(layersDir, id.String(), mapFile), What: "UUID of the layer", Expected: id.String(), Found: h.UUID.String()})
	case h.Parent == uuid.Nil:
		return "", nil
	}
	return h.Parent.String(), nil
}

// write replaces what is in refs/, which a confined process may not make anew itself.
func (r *refs) write() error {
	s, dir := r.s, r.s.path(refsDir)
	entries, err := s.fs.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() == stampFile {
			continue
		}
		if err := s.fs.RemoveAll(s.path(refsDir, e.Name())); err != nil {
			return err
		}
	}
	for parent, children := range r.graph {
		dir := s.path(refsDir, parent)
		if err := s.fs.Mkdir(dir, 0o700); err != nil {
			return err
		}
		for child := range children {
			if err := s.touch(s.path(refsDir, parent, child.String())); err != nil {
				return err
			}
		}
		if err := s.fs.SetModTime(dir, r.mark(parent)); err != nil {
			return err
		}
	}
	return nil
}
