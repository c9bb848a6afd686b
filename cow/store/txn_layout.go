package store

import (
	"errors"
	"io/fs"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"cowblk/cow/vfs"
)

// A directory in tmp/ is removed only if it is recognizably cowblk's: another one may have a UUID
// as its name by chance, or a user may have put it there.

// stagedName matches the files of Pending.stage.
var stagedName = regexp.MustCompile(`^([0-9]+|commit\.json)\.(after|before)$`)

// Files whose name and content prove the kind of a directory. They are removed last, in this order.
var (
	txnProofs   = []string{journalFile, commitFile}
	diskProofs  = []string{damagedFile, diskFile}
	imageProofs = []string{imageFile}
	layerProofs = []string{mapFile}
)

// linkFile is the symbolic link that stood for the directory of a removed disk.
const linkFile = "link"

// dirLayout lists the permitted entries of a kind of directory.
type dirLayout struct {
	files  []string
	proofs []string             // files that prove the kind
	dirs   map[string]dirLayout // by name; "UUID": that of a layer
	staged bool                 // it has the files of Pending.stage
	top    bool                 // a directory in tmp/ itself: its proofs go durably last
}

var (
	layerLayout = dirLayout{files: []string{dataFile, checksumsFile}, proofs: layerProofs}
	diskLayout  = dirLayout{files: []string{lockFile, quiesceFile}, proofs: diskProofs}
	imageLayout = dirLayout{files: []string{dataFile}, proofs: imageProofs}
	anyUUID     = "UUID"
	layerDirs   = map[string]dirLayout{anyUUID: layerLayout}
	txnLayout   = dirLayout{files: []string{lockFile}, proofs: txnProofs, staged: true, dirs: map[string]dirLayout{
		"layer": layerLayout, "disk": diskLayout, "image": imageLayout, "removed": diskLayout, anyUUID: layerLayout,
	}}
)

// layoutAt returns the layout of a directory in tmp/, or of its directory "removed" of early
// versions, by what it contains. Names of one kind are foreign in another.
func (s *Store) layoutAt(dir string, entries []fs.DirEntry) (k dirLayout) {
	defer func() { k.top = true }()
	has := func(name string) bool {
		return slices.ContainsFunc(entries, func(e fs.DirEntry) bool { return e.Name() == name })
	}
	only := func(k dirLayout) bool {
		return !slices.ContainsFunc(entries, func(e fs.DirEntry) bool { return !k.allows(e) })
	}
	isLayer := s.checkMapMagic(filepath.Join(dir, mapFile)) == nil
	_, noDisk := s.removedDisk(dir)
	image := new(Image)
	noImage := s.readDocument(filepath.Join(dir, imageFile), image, func() error { return image.check(image.Name) })
	switch removal := isRemoval(dir); {
	case !removal && isLayer && filepath.Base(dir) != "removed": // removed by an earlier check
		k := txnLayout
		k.files = slices.Concat(k.files, layerLayout.files)
		k.proofs = slices.Concat(k.proofs, layerLayout.proofs)
		return k
	case !removal && filepath.Base(dir) != "removed":
		return txnLayout
	case noDisk != nil && (noImage == nil || has(imageFile) && only(imageLayout)):
		return imageLayout
	case has(diskFile), has(damagedFile), has(linkFile):
		k := diskLayout
		k.dirs = layerDirs
		return k
	case isLayer && only(layerLayout):
		return layerLayout
	}
	return dirLayout{files: []string{lockFile, quiesceFile}, dirs: layerDirs}
}

// allows reports whether cowblk creates such an entry in a directory of this kind.
func (k dirLayout) allows(e fs.DirEntry) bool {
	name := e.Name()
	if e.IsDir() {
		_, known := k.dirs[name]
		return known || k.dirs != nil && isUUID(name)
	}
	if name == linkFile && e.Type()&fs.ModeSymlink != 0 {
		return k.dirs != nil && slices.Contains(k.proofs, diskFile)
	}
	if !e.Type().IsRegular() {
		return false
	}
	name = strings.TrimSuffix(name, vfs.TempSuffix)
	return slices.Contains(k.files, name) || slices.Contains(k.proofs, name) || k.staged && stagedName.MatchString(name)
}

// layoutBelow returns the layout of an allowed subdirectory of dir, which has layout k.
func (s *Store) layoutBelow(k dirLayout, dir, name string) dirLayout {
	if name == "removed" {
		path := filepath.Join(dir, name)
		entries, _ := s.fs.ReadDir(path) // the caller's next access reports the error
		return s.layoutAt(path, entries)
	}
	if below, known := k.dirs[name]; known {
		return below
	}
	return k.dirs[anyUUID]
}

// foreignInTxn returns what makes a directory in tmp/ foreign; empty: it is cowblk's. It is
// cowblk's if a file proves it, or if all entries are permitted and there is a lock file or, if a
// power cut has lost that, only staged files. An empty directory counts as cowblk's.
func (s *Store) foreignInTxn(dir string) (string, error) {
	entries, err := s.fs.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil // its process has just ended
	}
	if err != nil {
		return "", err
	}
	k := s.layoutAt(dir, entries)
	if len(entries) == 0 {
		return "", nil
	}
	lock, staged, foreign := false, true, ""
	for _, e := range entries {
		name := e.Name()
		proof, err := s.proves(k, dir, e)
		if err != nil {
			return "", err
		}
		if proof {
			return "", nil
		}
		if name == damagedFile && e.Type().IsRegular() && isRemoval(dir) {
			return "", nil
		}
		if name == commitFile && e.Type().IsRegular() {
			return "", nil // whatever its content, it decides which manifests may be used
		}
		switch {
		case name == lockFile && e.Type().IsRegular():
			lock = true
		case !e.IsDir() && !stagedName.MatchString(name) && name != quiesceFile && !strings.HasSuffix(name, vfs.TempSuffix):
			staged = false
		}
		if foreign != "" {
			continue
		}
		if foreign, err = s.foreignIn(k, dir, e); err != nil {
			return "", err
		}
	}
	switch {
	case foreign != "":
		return foreign, nil
	case !lock && !staged:
		return entries[0].Name(), nil
	}
	return "", nil
}

// proves reports whether an entry proves by its content that the directory is cowblk's.
func (s *Store) proves(k dirLayout, dir string, e fs.DirEntry) (bool, error) {
	path := filepath.Join(dir, e.Name())
	var err error
	switch name := e.Name(); {
	case e.IsDir() && isUUID(name):
		err = s.checkMapMagic(filepath.Join(path, mapFile))
	case e.IsDir() && name == "layer" && !isRemoval(dir):
		err = s.checkMapMagic(filepath.Join(path, mapFile))
	case !e.Type().IsRegular() || !slices.Contains(k.proofs, name):
		return false, nil
	case name == mapFile:
		err = s.checkMapMagic(path)
	case name == diskFile:
		_, err = s.removedDisk(dir)
	case name == imageFile:
		m := new(Image)
		err = s.readDocument(path, m, func() error { return m.check(m.Name) })
	case name == journalFile:
		_, err = s.readJournal(dir)
	case name == commitFile:
		_, err = s.readChange(dir)
	default:
		return false, nil
	}
	if err != nil && !isDamage(err) {
		return false, err
	}
	return err == nil, nil
}

// foreignIn returns the first foreign entry in e, an entry of dir, as a path below dir.
func (s *Store) foreignIn(k dirLayout, dir string, e fs.DirEntry) (string, error) {
	if !k.allows(e) {
		return e.Name(), nil
	}
	if !e.IsDir() {
		return "", nil
	}
	at := filepath.Join(dir, e.Name())
	entries, err := s.fs.ReadDir(at)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	for _, below := range entries {
		foreign, err := s.foreignIn(s.layoutBelow(k, dir, e.Name()), at, below)
		if foreign != "" || err != nil {
			return filepath.Join(e.Name(), foreign), err
		}
	}
	return "", nil
}

// removeTxnDir removes a directory of tmp/ except for foreign entries. The files that prove its
// kind go last, so an interrupted removal is recognized.
func (s *Store) removeTxnDir(dir string) error {
	entries, err := s.fs.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	left, err := s.removeAllowed(s.layoutAt(dir, entries), dir)
	if left != "" && err == nil {
		s.log.Warn("a directory in the store's tmp is not removed: it contains files that are not cowblk's", "directory", dir, "found", left)
	}
	return err
}

// removeAllowed removes the permitted entries of a directory, and the directory if it is empty
// then; else it returns what is left.
func (s *Store) removeAllowed(k dirLayout, dir string) (left string, err error) {
	entries, err := s.fs.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	rank := func(e fs.DirEntry) int {
		if e.Name() == lockFile {
			return len(k.proofs) + 1
		}
		return slices.Index(k.proofs, e.Name())
	}
	slices.SortStableFunc(entries, func(a, b fs.DirEntry) int { return rank(a) - rank(b) })
	durable := true // the removal of files that prove nothing
	for _, e := range entries {
		if !durable && rank(e) >= 0 {
			if err := s.fs.SyncDir(dir); err != nil {
				return "", err
			}
			durable = true
		}
		durable = durable && (e.Name() != dataFile && e.Name() != checksumsFile || !k.top)
		path, below := filepath.Join(dir, e.Name()), ""
		switch {
		case !k.allows(e):
			// rm --damaged renames whatever is in the place of the manifest.
			if e.Name() != damagedFile || !e.IsDir() || s.fs.Remove(path) != nil {
				below = e.Name()
			}
		case e.IsDir():
			if below, err = s.removeAllowed(s.layoutBelow(k, dir, e.Name()), path); below != "" {
				below = filepath.Join(e.Name(), below)
			}
		default:
			if err = s.fs.Remove(path); errors.Is(err, fs.ErrNotExist) {
				err = nil
			}
		}
		if err != nil {
			return "", err
		}
		if left == "" {
			left = below
		}
	}
	if left != "" {
		return left, nil
	}
	if err := s.fs.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	return "", nil
}
