package store

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/google/uuid"

	"cowblk/cow/layer"
)

// References say which layers lie on a layer or on an image, so that nobody has to read every manifest to know whether
// one is still needed. refs/PARENT is a directory for each layer and each image, and refs/PARENT/CHILD an empty file for
// each layer CHILD of layers/ whose parent is PARENT: a layer's UUID, or imagePrefix and an image's name below the first
// layer of a disk. A layer that is in layers/ keeps its parent, whether a manifest names it or not. A layer that lies on
// itself is the head of a disk and named by another one, as where a manifest was copied by hand: all are read then.
//
// They are a cache of what manifests and headers say, never durable, and hold only while their stamp does (refstamp.go):
// every change of names in layers/ and disks/ ends that, also one by an older cowblk or by hand. Each directory in refs/
// has a time that only the stamp's key gives: one that somebody has removed files from, or all of it, is not believed. Who adds a layer adds
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
	failed  bool   // a reference could not be made: they do not hold any more
	key     string // of the stamp, see mark
	plan    bool   // nothing may be changed
}

// errRefsChanged: somebody else has changed a directory in refs/.
var errRefsChanged = errors.New("references were changed by another program")

// refGraph are references in memory: parent → children.
type refGraph map[string]map[uuid.UUID]bool

func (g refGraph) node(name string) {
	if g[name] == nil {
		g[name] = map[uuid.UUID]bool{}
	}
}

func (g refGraph) add(parent string, child uuid.UUID) {
	g.node(parent)
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

// mark is the time of the directory of parent while nobody else has changed it. It differs from store to store and from
// one making of the references to the next.
func (r *refs) mark(parent string) time.Time {
	sum := sha256.Sum256([]byte(r.key + "\x00" + parent))
	n := binary.LittleEndian.Uint64(sum[:])
	return time.Unix(int64(1<<30+n>>34), int64(n%uint64(time.Second)))
}

// intact returns errRefsChanged if the directory of parent is not as this program has left it.
func (r *refs) intact(parent string) error {
	st, err := r.s.fs.Stat(r.s.path(refsDir, parent))
	if errors.Is(err, fs.ErrNotExist) || err == nil && !st.ModTime().Equal(r.mark(parent)) {
		return errRefsChanged
	}
	return err
}

// change changes the directory of parent, if it was intact.
func (r *refs) change(parent string, f func() error) {
	err := r.intact(parent)
	if err == nil {
		err = f()
	}
	if err == nil {
		err = r.s.fs.SetModTime(r.s.path(refsDir, parent), r.mark(parent))
	}
	r.failed = r.failed || err != nil
}

// addNode makes the directory of a layer or an image. A nil r knows of no references, and nothing is to be done.
func (r *refs) addNode(name string) {
	switch {
	case r == nil || r.failed:
		return
	case r.graph != nil:
		r.graph.node(name)
		return
	}
	dir := r.s.path(refsDir, name)
	err := r.s.fs.Mkdir(dir, 0o700)
	if err == nil {
		err = r.s.fs.SetModTime(dir, r.mark(name))
	}
	r.failed = err != nil
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
	r.change(parent, func() error { return r.s.touch(r.s.path(refsDir, parent, child.String())) })
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
	case r == nil || parent == "":
	case r.graph != nil:
		delete(r.graph[parent], child)
	default:
		r.change(parent, func() error { return r.s.fs.Remove(r.s.path(refsDir, parent, child.String())) })
	}
}

// dropNode removes the directory of a layer or an image on which nothing lies.
func (r *refs) dropNode(name string) {
	switch {
	case r == nil:
	case r.graph != nil:
		delete(r.graph, name)
	default:
		_ = r.s.fs.Remove(r.s.path(refsDir, name, name))
		_ = r.s.fs.Remove(r.s.path(refsDir, name))
	}
}

// above reports whether layers lie on parent, except the one given (the zero UUID: none), and whether parent is a
// head that another disk may name. References that somebody else has changed are made anew first.
func (r *refs) above(parent string, except uuid.UUID) (others, twice bool, err error) {
	names, err := r.on(parent)
	if errors.Is(err, errRefsChanged) {
		if err = r.remake(); err == nil {
			names, err = r.on(parent)
		}
	}
	for _, name := range names {
		switch name {
		case parent:
			twice = true
		case except.String():
		default:
			others = true
		}
	}
	return others, twice, err
}

// on returns names of layers that lie on parent: all, or three.
func (r *refs) on(parent string) (names []string, err error) {
	if r.graph != nil {
		for child := range r.graph[parent] {
			names = append(names, child.String())
		}
		return names, nil
	}
	// Before and after, for somebody may change it just now.
	if err := r.intact(parent); err != nil {
		if there, serr := r.there(parent); serr != nil || there {
			return nil, errors.Join(err, serr)
		}
		return nil, nil // it was removed already, and on it lies nothing
	}
	names, err = r.s.fs.SomeNames(r.s.path(refsDir, parent), 3)
	if err == nil {
		err = r.intact(parent)
	}
	return names, err
}

// there reports whether a layer or an image is in the store.
func (r *refs) there(name string) (bool, error) {
	if image, ok := strings.CutPrefix(name, imagePrefix); ok {
		return r.s.exists(r.s.path(imagesDir, image))
	}
	return r.s.exists(r.s.path(layersDir, name))
}

// remake replaces references that do not hold.
func (r *refs) remake() error {
	anew := r.s.survey
	if !r.plan {
		if err := r.s.invalidate(); err != nil {
			return err
		}
		anew = r.s.openRefs
	}
	fresh, err := anew()
	if err == nil {
		*r = *fresh
	}
	return err
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
		used, twice, err := r.above(l.UUID.String(), above)
		if err != nil {
			return 0, fmt.Errorf("references to layer %s: %w", l.UUID, err)
		}
		if used || r.unknown {
			return i, nil
		}
		if twice || !l.own() {
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
	r.dropNode(id.String())
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
