package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"cowblk/cow/vfs"
)

// survey is what the manifests that are on disk name at this moment. It costs one call for each disk, and the reading of
// each manifest that is not in the state in which the index has it. Who deletes layers or images holds the store's lock
// from the survey until that is done.
type survey struct {
	s     *Store
	index *manifestIndex // as it was read
	disks map[string]*surveyed
	away  []*indexEntry          // of disks whose directories were moved away without rm
	named map[uuid.UUID][]string // by the disks that can be read; made when it is needed

	write bool // the index may be written
	file  vfs.File
	clock time.Time // of the file system, before the first manifest was read
}

// surveyed is what is known of a disk that is there. Its name is that of its directory.
type surveyed struct {
	entry   *indexEntry // nil: nothing is known
	err     error       // of the manifest, if it cannot be read: entry has what it may name
	passes  bool        // err is no damage
	unknown bool        // it may name anything
	link    bool        // the directory is a symbolic link
}

// survey looks at all disks. The store is locked. Its error says that the store's directories cannot be listed.
func (s *Store) survey() (*survey, error) { return s.surveyDisks(true) }

// planSurvey is survey for who changes nothing and has not locked the store.
func (s *Store) planSurvey() (*survey, error) { return s.surveyDisks(false) }

func (s *Store) surveyDisks(write bool) (*survey, error) {
	v := &survey{s: s, index: s.readIndex(), disks: map[string]*surveyed{}, write: write}
	defer v.close()
	list, err := s.fs.ReadDir(s.path(disksDir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("store %s: %w", s.dir, err)
	}
	for _, e := range list {
		link := e.Type()&fs.ModeSymlink != 0
		if !e.IsDir() && !link {
			continue
		}
		d := v.look(e.Name())
		if d == nil {
			continue // removed since the directory was read
		}
		d.link = link
		v.disks[e.Name()] = d
	}
	if err := v.findAway(); err != nil {
		return nil, err
	}
	v.save()
	return v, nil
}

// look finds out what the disk in a directory names: by the index where its manifest has not changed.
func (v *survey) look(name string) *surveyed {
	path := v.s.path(disksDir, name, diskFile)
	st, err := v.s.fs.Stat(path)
	known := v.index.entries[name]
	if errors.Is(err, fs.ErrNotExist) && CheckName("disk", name) != nil {
		return nil // no disk has this name, and there is no manifest: lost+found, for example
	}
	if err == nil && known != nil && known.Manifest != nil {
		if now := stateOf(st); now != nil && *now == *known.Manifest {
			return &surveyed{entry: known}
		}
	}
	v.startClock()
	var state *fileState
	if err == nil {
		if state = stateOf(st); state != nil && (v.file == nil || v.clock.UnixNano()-state.CTime < int64(v.s.clockMargin)) {
			state = nil // a later change may leave the same state
		}
	}
	m, rerr := v.s.Disk(name)
	if rerr == nil {
		e := entryOf(name, m)
		e.Manifest, e.Directory = state, v.s.directoryOf(name)
		if known != nil {
			v.away = append(v.away, known.replacedBy(e)...)
		}
		return &surveyed{entry: e}
	}
	if errors.Is(rerr, ErrNotFound) || errors.Is(rerr, ErrInvalid) { // the name may be none of a disk
		rerr = v.missing(name, rerr)
	}
	if rerr == nil {
		return nil
	}
	return v.unreadable(name, known, rerr)
}

// missing returns nil if the directory of a disk is gone, too. A link that leads nowhere is there.
func (v *survey) missing(name string, err error) error {
	st, serr := v.s.fs.Stat(v.s.path(disksDir, name))
	if errors.Is(serr, fs.ErrNotExist) {
		names, lerr := v.s.fs.ReadDir(v.s.path(disksDir))
		if lerr == nil && !slices.ContainsFunc(names, func(e fs.DirEntry) bool { return e.Name() == name }) {
			return nil
		}
		return errors.Join(err, serr, lerr)
	}
	if serr == nil && !st.IsDir() {
		return nil // a link to something else
	}
	return errors.Join(err, serr)
}

// unreadable gathers what a manifest may name that cannot be read: what the index last knew of it, and every UUID in
// it. That is all if the index knows the disk, or if the file is a whole document.
func (v *survey) unreadable(name string, known *indexEntry, err error) *surveyed {
	d := &surveyed{err: err, passes: !isDamage(err), unknown: known == nil}
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
		e.Layers = append(e.Layers, slices.DeleteFunc(slices.Clone(more), func(id uuid.UUID) bool { return last[id] })...)
		if whole && len(more) > 0 {
			d.unknown = false
		}
	}
	d.entry = e
	return d
}

var uuidText = regexp.MustCompile(`(?i)[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}`)

// uuidsIn are the UUIDs in a text, and whether it is a whole JSON document: then also those in its strings.
func uuidsIn(text []byte) (all []uuid.UUID, whole bool) {
	seen := map[uuid.UUID]bool{}
	found := uuidText.FindAllString(string(text), -1)
	var tree any
	if whole = json.Unmarshal(text, &tree) == nil; whole {
		found = append(found, uuidText.FindAllString(strings.Join(stringsIn(tree, nil), "\n"), -1)...)
	}
	for _, f := range found {
		if id, err := uuid.Parse(strings.ReplaceAll(f, "-", "")); err == nil && !seen[id] {
			seen[id] = true
			all = append(all, id)
		}
	}
	return all, whole
}

// stringsIn appends the strings in a decoded document, names of members among them.
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
	if state := stateOf(st); state != nil {
		return &directory{Dev: state.Dev, Inode: state.Inode}
	}
	return nil
}

// findAway finds the disks that the index knows and that are not there: moved away, and not to another name. One whose
// head is not there either cannot come back: an earlier version has removed it.
func (v *survey) findAway() error {
	for name, e := range v.index.entries {
		if v.disks[name] == nil {
			v.away = append(v.away, e)
		}
	}
	v.away = append(v.away, v.index.away...)
	kept := v.away[:0:0]
	for _, e := range v.away {
		there, err := v.mayComeBack(e)
		if err != nil {
			return err
		}
		if there && !v.renamed(e) && !slices.ContainsFunc(kept, func(k *indexEntry) bool { return string(k.line()) == string(e.line()) }) {
			kept = append(kept, e)
		}
	}
	v.away = kept
	return nil
}

func (v *survey) mayComeBack(e *indexEntry) (bool, error) {
	if e.Elsewhere {
		return true, nil
	}
	there, err := v.s.exists(v.s.path(layersDir, e.Head.String()))
	if err != nil || there {
		return there, err
	}
	all, err := v.s.exists(v.s.path(layersDir))
	return !all, err // the directory itself is away
}

// renamed reports whether a disk that is there is the one of e under another name.
func (v *survey) renamed(e *indexEntry) bool {
	for _, d := range v.disks {
		if now := d.entry; e.Directory != nil && d.err == nil && now.Directory != nil && *now.Directory == *e.Directory && now.names(e.Head) {
			return true
		}
	}
	return false
}

func (v *survey) startClock() {
	if !v.write || v.file != nil {
		return
	}
	if f, at, err := v.s.newIndex(); err == nil {
		v.file, v.clock = f, at
	} else {
		v.write = false
		v.s.log.Debug("the index of manifests cannot be written", "err", err)
	}
}

// save writes the index anew if it is not what has been found. Whether it was written may be ignored: it is a cache.
func (v *survey) save() (written bool) { return v.saveAs(false) }

// saveAs is save; durably if a power cut must not bring back what the index had before.
func (v *survey) saveAs(durable bool) (written bool) {
	entries := map[string]*indexEntry{}
	for name, d := range v.disks {
		if d.entry != nil && !(d.err != nil && v.index.entries[name] == nil) {
			entries[name] = d.entry
		}
	}
	away := slices.Clone(v.away)
	for i, e := range away {
		if e.Away {
			continue
		}
		if entries[e.Name] == nil {
			entries[e.Name] = e
			away[i] = nil
		} else {
			other := *e
			other.Away = true
			away[i] = &other
		}
	}
	away = slices.DeleteFunc(away, func(e *indexEntry) bool { return e == nil })
	text := indexText(entries, away)
	if string(text) == string(v.index.text) {
		v.close()
		return true
	}
	v.startClock()
	defer v.close()
	if v.file == nil || v.s.writeIndex(v.file, text, durable) != nil {
		return false
	}
	_ = v.file.Close() // it has its name
	v.file, v.index.text = nil, text
	return true
}

func (v *survey) close() {
	if v.file == nil {
		return
	}
	_ = v.file.Close()
	v.file = nil
	path := v.s.path(indexDir, indexFile) + vfs.TempSuffix
	_ = v.s.fs.Remove(path)
}

// forget drops what the index has of a disk that this program has removed, before its layers go.
func (v *survey) forget(name string) {
	delete(v.disks, name)
	v.named = nil
	if v.saveAs(true) {
		return
	}
	if err := v.s.strike(name); err != nil {
		v.s.log.Debug("the index of manifests cannot be written", "err", err)
	}
}

// forgetAway drops what the index has of a disk that is not there, if one of the layers is its head: those of an
// interrupted command that has removed or replaced its manifest, or of one that nobody is to wait for.
func (v *survey) forgetAway(name string, layers []uuid.UUID) {
	n := len(v.away)
	v.away = slices.DeleteFunc(v.away, func(e *indexEntry) bool {
		return e.Name == name && slices.Contains(layers, e.Head)
	})
	if len(v.away) < n && !v.saveAs(true) && v.disks[name] == nil {
		_ = v.s.strike(name)
	}
}

// isAway reports whether a disk that an interrupted command was about is not there, and lets the index know that it may
// name the layers, too. Without names it may be any.
func (v *survey) isAway(disks []string, layers []uuid.UUID) bool {
	away := false
	for i, e := range v.away {
		if v.disks[e.Name] != nil || len(disks) > 0 && !slices.Contains(disks, e.Name) {
			continue
		}
		away = true
		more := *e
		more.Layers = slices.Clone(e.Layers)
		for _, id := range layers {
			if !more.names(id) && len(v.users(id, "")) == 0 {
				more.Layers = append(more.Layers, id)
			}
		}
		v.away[i] = &more
	}
	if away {
		v.save()
	}
	return away
}

// replace says what a manifest names that was just written.
func (v *survey) replace(m *Manifest) {
	if d := v.disks[m.Name]; d != nil {
		e := entryOf(m.Name, m)
		e.Directory = d.entry.Directory
		d.entry, v.named = e, nil
		v.saveAs(true)
	}
}

// users are the names of other disks than except that name a layer, sorted.
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
	return slices.DeleteFunc(slices.Clone(v.named[id]), func(name string) bool { return name == except })
}

// mayUse says which disk that cannot be read, or that is not there, keeps a layer; empty: none does.
func (v *survey) mayUse(id uuid.UUID, except string) string {
	if name := v.brokenUser(id, except); name != "" {
		return fmt.Sprintf("the manifest of disk %q cannot be read", name)
	}
	for _, e := range v.away {
		if e.names(id) {
			return fmt.Sprintf("the directory of disk %q was moved away without rm", e.Name)
		}
	}
	return ""
}

// brokenUser is a disk whose manifest cannot be read and may name a layer; empty: none.
func (v *survey) brokenUser(id uuid.UUID, except string) string {
	for _, name := range slices.Sorted(maps.Keys(v.disks)) {
		if d := v.disks[name]; name != except && d.err != nil && (d.unknown || d.entry.names(id)) {
			return name
		}
	}
	return ""
}

// awayUses reports whether a disk that is not there keeps a layer.
func (v *survey) awayUses(id uuid.UUID) bool {
	return slices.ContainsFunc(v.away, func(e *indexEntry) bool { return e.names(id) })
}

// promoted reports whether a layer was the head of a disk that cannot be read when the index last knew it: what lies on
// it may be that disk's, too.
func (v *survey) promoted(id uuid.UUID, except string) bool {
	for name, d := range v.disks {
		if name != except && d.err != nil && d.entry.Head == id && id != uuid.Nil {
			return true
		}
	}
	return false
}

// broken returns the errors of the manifests that cannot be read, of some disks; of all if none is given.
func (v *survey) broken(names []string) (damage, passing error) {
	for name, d := range v.disks {
		switch {
		case d.err == nil || len(names) > 0 && !slices.Contains(names, name):
		case d.passes:
			passing = errors.Join(passing, d.err)
		default:
			damage = errors.Join(damage, d.err)
		}
	}
	return damage, passing
}

// imageUsers are the disks on an image, sorted. An error: it is not known of all.
func (v *survey) imageUsers(image string) (names []string, away []string, err error) {
	for name, d := range v.disks {
		switch {
		case d.err != nil:
			err = errors.Join(err, fmt.Errorf("%s: %w", PathText(filepath.Join(disksDir, name)), d.err))
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
