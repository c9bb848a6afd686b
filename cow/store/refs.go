package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/google/uuid"

	"cowblk/cow/layer"
)

// References say which layers lie on a layer or on an image, so that nobody has to read every manifest to know whether
// one is still needed. refs/PARENT/CHILD is an empty file for each layer CHILD of layers/ whose parent is PARENT: a
// layer's UUID, or imagePrefix and an image's name below the first layer of a disk. A layer that is in layers/ keeps its
// parent, whether a manifest names it or not.
//
// They are a cache of what manifests and headers say, never durable, and hold only while their stamp does (refstamp.go):
// every change of names in layers/ and disks/ ends that, also one by an older cowblk or by hand. Who adds a layer adds
// its reference and stamps again, if the references held before. Who removes layers and finds that they do not hold
// makes them anew (refsurvey.go). The rules that make a kill at any moment harmless:
//
//  1. a layer is renamed into layers/ before its reference is made, and out of layers/ before it is dropped: a stamp
//     never holds while a reference is missing;
//  2. the reference is there before the manifest that names the layer;
//  3. a stamp is written when everything else is done.
//
// A reference too many keeps a layer that nobody needs, until the references are made anew.

const (
	refsDir     = "refs"
	imagePrefix = "image-" // no UUID begins so
)

// refs are references that hold. The store's lock is held for as long as they are used, unless only a plan is made.
type refs struct {
	s *Store
	// graph is the references where they cannot be written: the file system is full, or the store only read. nil: they
	// are in refs/.
	graph refGraph
	// unreadable is a disk whose manifest cannot be read; empty: none.
	unreadable string
	// unknown: there are layers, which that disk may name, whose parents are not known either. Nothing may be removed.
	unknown bool
	failed  bool // a reference could not be made: they do not hold any more
}

// refGraph are references in memory: parent → children.
type refGraph map[string]map[uuid.UUID]bool

func (g refGraph) add(parent string, child uuid.UUID) {
	if g[parent] == nil {
		g[parent] = map[uuid.UUID]bool{}
	}
	g[parent][child] = true
}

func imageRef(name string) string { return imagePrefix + name }

// below is what layer i of m has its reference under; empty: nothing of the store.
func (m *Manifest) below(i int) string {
	switch {
	case i > 0:
		return m.Layers[i-1].UUID.String()
	case m.Base != nil && m.Base.Image != "":
		return imageRef(m.Base.Image)
	}
	return ""
}

// add makes a reference. A nil r knows of none, and nothing is to be done.
func (r *refs) add(parent string, child uuid.UUID) {
	switch {
	case r == nil || parent == "" || r.failed:
		return
	case r.graph != nil:
		r.graph.add(parent, child)
		return
	}
	err := r.s.fs.Mkdir(r.s.path(refsDir, parent), 0o700)
	if err == nil || errors.Is(err, fs.ErrExist) {
		err = r.s.touch(r.s.path(refsDir, parent, child.String()))
	}
	r.failed = err != nil
}

func (s *Store) touch(path string) error {
	f, err := s.fs.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	return f.Close()
}

// drop removes a reference. One that cannot be removed is harmless.
func (r *refs) drop(parent string, child uuid.UUID) {
	switch {
	case parent == "":
	case r.graph != nil:
		delete(r.graph[parent], child)
	default:
		_ = r.s.fs.Remove(r.s.path(refsDir, parent, child.String()))
		_ = r.s.fs.Remove(r.s.path(refsDir, parent)) // the last one
	}
}

// above reports whether layers lie on parent, except the one given (the zero UUID: none).
func (r *refs) above(parent string, except uuid.UUID) (bool, error) {
	if r.graph != nil {
		children := r.graph[parent]
		return len(children) > 1 || len(children) == 1 && !children[except], nil
	}
	names, err := r.s.fs.SomeNames(r.s.path(refsDir, parent), 2)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	for _, name := range names {
		if name != except.String() {
			return true, nil
		}
	}
	return false, err
}

// needed returns the index of the highest layer of m that is still needed when m's disk gives up those from index low on;
// low-1 if none of them is.
func (r *refs) needed(m *Manifest, low int) (int, error) {
	var others map[uuid.UUID][]string
	above := uuid.Nil
	for i := len(m.Layers) - 1; i >= low; i-- {
		l := &m.Layers[i]
		if r.unknown {
			return i, nil
		}
		used, err := r.above(l.UUID.String(), above)
		if err != nil {
			return 0, fmt.Errorf("references to layer %s: %w", l.UUID, err)
		}
		if used {
			return i, nil
		}
		if !l.own() {
			// Only the layers in layers/ have references, and on those of a table other tables' may lie.
			if others == nil {
				if others, err = r.s.layerUsers(); err != nil {
					return i, nil
				}
			}
			for _, name := range others[l.UUID] {
				if name != m.Name {
					return i, nil
				}
			}
		}
		above = l.UUID
	}
	return low - 1, nil
}

// SharedLayers returns how many layers of m, from the oldest on, are there for others too: disks, or layers that are being
// made or are left over. After a restart of the system it reads all manifests until a command has changed the store.
func (s *Store) SharedLayers(m *Manifest) (int, error) {
	r, err := s.planRefs()
	if err != nil {
		return 0, err
	}
	r.unknown = false // what may be needed is not shared for that
	top, err := r.needed(m, 0)
	return top + 1, err
}

// takeOut moves a layer that nothing names or lies on to the directory to, where it is garbage. Who has named it has
// durably stopped.
func (r *refs) takeOut(id uuid.UUID, parent, to string) error {
	s := r.s
	from := s.path(layersDir, id.String())
	// What cannot be removed takes memory until the kernel stops.
	_ = layer.RemoveShared(s.fs, layer.Paths{Map: s.path(layersDir, id.String(), mapFile)})
	if err := s.fs.Rename(from, to+"/"+id.String()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		// A full file system may not have room for one more name.
		if err := s.fs.RemoveAll(from); err != nil {
			return err
		}
	}
	r.drop(parent, id)
	return nil
}

// releaseAbove takes out the layers of m from the top down to index low that are not needed any more, and makes that
// durable.
func (r *refs) releaseAbove(m *Manifest, low int, to string) error {
	stays, err := r.needed(m, low)
	if err != nil {
		return err
	}
	for i := len(m.Layers) - 1; i > stays; i-- {
		if err := r.takeOut(m.Layers[i].UUID, m.below(i), to); err != nil {
			return err
		}
	}
	if stays == len(m.Layers)-1 {
		if r.unknown {
			r.s.log.Warn("layers are kept, for a disk that cannot be read may need them: cowblk check shows them once it can",
				"layers_of", m.Name, "unreadable_disk", r.unreadable)
		}
		return nil
	}
	return r.s.syncLayers()
}

// syncLayers makes durable what has been renamed into and out of layers/.
func (s *Store) syncLayers() error {
	err := s.fs.SyncDir(s.path(layersDir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
