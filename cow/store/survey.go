package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"cowblk/cow/layer"
	"cowblk/cow/vfs"
)

// survey holds what the manifests on disk name. It compares the version of each manifest with the
// index and reads those that differ. A caller that deletes layers or images holds the store's lock
// from the survey until the deletion is done.
type survey struct {
	s     *Store
	index *manifestIndex // as read
	disks map[string]*surveyedDisk
	away  []*indexEntry          // disks whose directories were moved away without rm
	named map[uuid.UUID][]string // layer to readable disks; built on demand

	mayWrite bool // the index may be written
	file     vfs.File
	fsTime   time.Time // the file system's time before the first manifest was read
}

// surveyedDisk describes an existing disk. Its name is that of its directory.
type surveyedDisk struct {
	entry     *indexEntry // nil: unknown
	err       error       // of an unreadable manifest; entry lists what it may name
	transient bool        // err does not mean damage
	unknown   bool        // it may name any layer
	link      bool        // the directory is a symbolic link
}

// survey reads all disks. write: the caller holds the store's lock, and the index is updated.
// Error: the store's directories cannot be listed.
func (s *Store) survey(write bool) (*survey, error) {
	v := &survey{s: s, index: s.readIndex(), disks: map[string]*surveyedDisk{}, mayWrite: write}
	defer v.close()
	list, err := s.readDir(s.path(disksDir))
	if err != nil {
		return nil, fmt.Errorf("store %s: %w", s.dir, err)
	}
	list = slices.DeleteFunc(list, func(e fs.DirEntry) bool {
		return !e.IsDir() && !isLinkEntry(e)
	})
	paths := make([]string, len(list))
	for i, e := range list {
		paths[i] = s.path(disksDir, e.Name(), diskFile)
	}
	now := s.fs.Versions(paths)
	for i, e := range list {
		d := v.knownDisk(e.Name(), now[i])
		if d == nil {
			d = v.readDisk(e.Name())
		}
		if d == nil {
			continue // removed meanwhile
		}
		d.link = isLinkEntry(e)
		v.disks[e.Name()] = d
	}
	if err := v.findAway(); err != nil {
		return nil, err
	}
	v.save(false)
	return v, nil
}

func isLinkEntry(e fs.DirEntry) bool { return e.Type()&fs.ModeSymlink != 0 }

// knownDisk returns a disk whose manifest has the version that the index has recorded; nil: it may
// have changed.
func (v *survey) knownDisk(name string, now *vfs.Version) *surveyedDisk {
	known := v.index.entries[name]
	if now == nil || known == nil || known.Manifest == nil || *now != *known.Manifest {
		return nil
	}
	return &surveyedDisk{entry: known}
}

// readDisk returns what the disk in a directory names.
func (v *survey) readDisk(name string) *surveyedDisk {
	path := v.s.path(disksDir, name, diskFile)
	st, err := v.s.fs.Stat(path)
	known := v.index.entries[name]
	if errors.Is(err, fs.ErrNotExist) && CheckName("disk", name) != nil {
		return nil // not a disk: lost+found, for example
	}
	v.startIndex()
	var state *vfs.Version
	if err == nil {
		if state = vfs.VersionOf(st); state != nil &&
			(v.file == nil || v.fsTime.UnixNano()-state.CTime < int64(v.s.clockMargin)) {
			state = nil // a later change may leave the same state
		}
	}
	m, rerr := v.s.Disk(name)
	if rerr != nil && !isDamage(rerr) {
		m, rerr = v.s.Disk(name) // what a call that failed once would keep stays for ever
	}
	if rerr == nil {
		e := entryOf(name, m)
		e.Manifest, e.Directory = state, v.s.directoryOf(name)
		if known != nil {
			v.away = append(v.away, known.replacedBy(e)...)
		}
		return &surveyedDisk{entry: e}
	}
	if errors.Is(rerr, ErrNotFound) || errors.Is(rerr, ErrInvalid) { // the name may be invalid
		rerr = v.checkMissing(name, rerr)
	}
	if rerr == nil {
		return nil
	}
	return v.unreadable(name, known, rerr)
}

// checkMissing returns nil if the directory of the disk is gone too. A dangling link counts as
// present.
func (v *survey) checkMissing(name string, err error) error {
	st, serr := v.s.fs.Stat(v.s.path(disksDir, name))
	if errors.Is(serr, fs.ErrNotExist) {
		names, lerr := v.s.fs.ReadDir(v.s.path(disksDir))
		if lerr == nil && !slices.ContainsFunc(names, func(e fs.DirEntry) bool {
			return e.Name() == name
		}) {
			return nil
		}
		return errors.Join(err, serr, lerr)
	}
	if serr == nil && !st.IsDir() {
		return nil // a link to something else
	}
	return errors.Join(err, serr)
}

// unreadable collects what an unreadable manifest may name: the last index entry and every UUID in
// the text. The result is complete only if the text is a whole document: the manifest is not in the
// state that the index has recorded, and may name other layers than it did then.
func (v *survey) unreadable(name string, known *indexEntry, err error) *surveyedDisk {
	d := &surveyedDisk{err: err, transient: !isDamage(err), unknown: true}
	e := &indexEntry{Version: indexVersion, Name: name}
	if known != nil {
		*e = *known
		e.Manifest, e.Layers = nil, slices.Clone(known.Layers)
	}
	text, rerr := v.s.readBounded(v.s.path(disksDir, name, diskFile))
	if rerr == nil {
		more, whole := uuidsIn(text)
		last := map[uuid.UUID]bool{}
		for _, id := range e.Layers {
			last[id] = true
		}
		e.Layers = append(e.Layers, slices.DeleteFunc(slices.Clone(more), func(id uuid.UUID) bool {
			return last[id]
		})...)
		if whole && len(more) > 0 {
			d.unknown = false
		}
	}
	d.entry = e
	return d
}

var uuidText = regexp.MustCompile(
	`(?i)[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}`)

// uuidsIn returns the UUIDs in a text. whole: the text is a JSON document; then UUIDs in escaped
// strings are included.
func uuidsIn(text []byte) (all []uuid.UUID, whole bool) {
	seen := map[uuid.UUID]bool{}
	found := uuidText.FindAllString(string(text), -1)
	var tree any
	if whole = json.Unmarshal(text, &tree) == nil; whole {
		found = append(found, uuidText.FindAllString(strings.Join(stringsIn(tree, nil), "\n"),
			-1)...)
	}
	for _, f := range found {
		if id, err := uuid.Parse(strings.ReplaceAll(f, "-", "")); err == nil && !seen[id] {
			seen[id] = true
			all = append(all, id)
		}
	}
	return all, whole
}

// stringsIn appends the strings of a decoded document, including member names.
func stringsIn(tree any, all []string) []string {
	switch t := tree.(type) {
	case string:
		all = append(all, t)
	case []any:
		for _, e := range t {
			all = stringsIn(e, all)
		}
	case map[string]any:
		for k, e := range t {
			all = stringsIn(e, append(all, k))
		}
	}
	return all
}

func (s *Store) directoryOf(name string) *directory {
	st, err := s.fs.Stat(s.path(disksDir, name))
	if err != nil {
		return nil
	}
	if state := vfs.VersionOf(st); state != nil {
		return &directory{Dev: state.Dev, Inode: state.Inode}
	}
	return nil
}

// findAway finds disks of the index that were moved away and not renamed. It drops a disk whose
// head is missing too: an earlier version has removed it.
func (v *survey) findAway() error {
	for name, e := range v.index.entries {
		if v.disks[name] == nil {
			v.away = append(v.away, e)
		}
	}
	v.away = append(v.away, v.index.away...)
	known := v.away[:0:0]
	for _, e := range v.away {
		exists, err := v.mayComeBack(e)
		if err != nil {
			return err
		}
		if exists && !v.renamed(e) && !slices.ContainsFunc(known, func(k *indexEntry) bool {
			return string(k.line()) == string(e.line())
		}) {
			known = append(known, e)
		}
	}
	v.away = known
	return nil
}

// mayComeBack reports whether a disk that was moved away still has its head: that is e.Head or an
// announced layer, or, if these are sealed, an unnamed head that lies on one of them: a power cut
// may have taken the index back to before the disk's last promotions.
func (v *survey) mayComeBack(e *indexEntry) (bool, error) {
	if e.Elsewhere {
		return true, nil
	}
	var sealed []uuid.UUID
	for _, id := range append([]uuid.UUID{e.Head}, e.announced()...) {
		exists, err := v.s.exists(v.s.path(layersDir, id.String()))
		if err != nil {
			return false, err
		}
		if exists && !v.s.isSealed(id) {
			return true, nil
		}
		if exists {
			sealed = append(sealed, id)
		}
	}
	if len(sealed) > 0 {
		return v.hasHeadAbove(sealed)
	}
	all, err := v.s.exists(v.s.path(layersDir))
	return !all, err // layers/ itself was moved away
}

// hasHeadAbove reports whether there is a head that no readable disk names and that lies on one of
// these layers, or a layer that may be one.
func (v *survey) hasHeadAbove(below []uuid.UUID) (bool, error) {
	unnamed, err := v.unnamedLayers(nil)
	if err != nil {
		return false, err
	}
	for _, h := range unnamed {
		if h == nil || h.State == layer.Head && v.mayLieOn(h.Parent, below) {
			return true, nil
		}
	}
	return false, nil
}

// mayLieOn reports whether a layer is one of below or lies on one of them, or has a layer below it
// that cannot be read.
func (v *survey) mayLieOn(id uuid.UUID, below []uuid.UUID) bool {
	for seen := map[uuid.UUID]bool{}; id != uuid.Nil && !seen[id]; {
		if slices.Contains(below, id) {
			return true
		}
		seen[id] = true
		h, err := v.s.headerOf(id)
		if err != nil {
			return true
		}
		id = h.Parent
	}
	return false
}

// unnamedLayers returns the headers of the layers in layers/ that no readable disk names, without
// those in except; nil: a header that cannot be read.
func (v *survey) unnamedLayers(except []uuid.UUID) (map[uuid.UUID]*layer.Header, error) {
	list, err := v.s.readDir(v.s.path(layersDir))
	if err != nil {
		return nil, err
	}
	skip := map[uuid.UUID]bool{}
	for _, id := range except {
		skip[id] = true
	}
	unnamed := map[uuid.UUID]*layer.Header{}
	for _, e := range list {
		id, err := uuid.Parse(e.Name())
		if err != nil || skip[id] || len(v.users(id, "")) > 0 {
			continue
		}
		unnamed[id] = nil
		if h, err := v.s.headerOf(id); err == nil {
			unnamed[id] = &h
		}
	}
	return unnamed, nil
}

// isSealed reports whether the header of a layer in layers/ can be read and says that the layer is
// sealed.
func (s *Store) isSealed(id uuid.UUID) bool {
	h, err := s.headerOf(id)
	return err == nil && h.State == layer.Sealed
}

// headerOf reads the header of a layer in layers/.
func (s *Store) headerOf(id uuid.UUID) (layer.Header, error) {
	return layer.ReadHeader(s.fs, s.path(layersDir, id.String(), mapFile))
}

// renamed reports whether an existing disk is the disk of e under another name.
func (v *survey) renamed(e *indexEntry) bool {
	for _, d := range v.disks {
		if now := d.entry; e.Directory != nil && d.err == nil && now.Directory != nil &&
			*now.Directory == *e.Directory && now.names(e.Head) {
			return true
		}
	}
	return false
}
