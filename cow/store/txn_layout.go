package store

import (
	"errors"
	"io/fs"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/google/uuid"

	"cowblk/cow/layer"
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

// damagedFile is the manifest of a damaged disk during its removal. It must not be used: a copy of
// another disk's manifest names the layers of that disk.
const damagedFile = diskFile + ".damaged"

// linkFile is the symbolic link that stood for the directory of a removed disk.
const linkFile = "link"

// dirLayout lists the permitted entries of a kind of directory.
type dirLayout struct {
	files  []string
	proofs []string             // files that prove the kind
	dirs   map[string]dirLayout // by name; "UUID": that of a layer
	staged bool                 // it has the files of Pending.stage
	top    bool                 // a directory in tmp/ itself: its proofs go durably last
	proven bool                 // its proofs and its lock file stay
}

var (
	layerLayout = dirLayout{files: []string{dataFile, checksumsFile}, proofs: layerProofs}
	diskLayout  = dirLayout{files: []string{lockFile, quiesceFile}, proofs: diskProofs}
	imageLayout = dirLayout{files: []string{dataFile}, proofs: imageProofs}
	anyUUID     = "UUID"
	layerDirs   = map[string]dirLayout{anyUUID: layerLayout}
	// A removed disk, image or layer without a readable document.
	removalLayout = dirLayout{
		files:  []string{lockFile, quiesceFile, dataFile, checksumsFile},
		proofs: slices.Concat(diskProofs, imageProofs, layerProofs), dirs: layerDirs,
	}
	txnLayout = dirLayout{files: []string{lockFile}, proofs: txnProofs, staged: true,
		dirs: map[string]dirLayout{
			"layer": layerLayout, "disk": diskLayout, "image": imageLayout, "removed": diskLayout,
			anyUUID: layerLayout,
		}}
)

// layoutAt returns the layout of a directory in tmp/, or of its directory "removed" of early
// versions. A readable document shows the kind: names of one kind are foreign in another.
func (s *Store) layoutAt(dir string, entries []fs.DirEntry) (k dirLayout) {
	defer func() { k.top = true }()
	if !isRemoval(dir) && filepath.Base(dir) != "removed" {
		k = txnLayout
		// a layer that an earlier check removed
		if s.checkMapMagic(filepath.Join(dir, mapFile)) == nil {
			k.files = slices.Concat(k.files, layerLayout.files)
			k.proofs = slices.Concat(k.proofs, layerLayout.proofs)
		}
		return k
	}
	damaged := slices.ContainsFunc(entries, func(e fs.DirEntry) bool {
		return e.Name() == damagedFile
	})
	if _, err := s.removedDisk(dir); err == nil || damaged {
		k = diskLayout
		k.dirs = layerDirs
		return k
	}
	m := new(Image)
	if s.readDocument(filepath.Join(dir, imageFile), m,
		func() error { return m.check(m.Name) }) == nil {
		return imageLayout
	}
	return removalLayout
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
	return slices.Contains(k.files, name) || slices.Contains(k.proofs, name) || k.staged &&
		stagedName.MatchString(name)
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
	entries, err := s.readDir(dir)
	if err != nil || len(entries) == 0 { // missing: its process has just ended
		return "", err
	}
	k := s.layoutAt(dir, entries)
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
		case !e.IsDir() && !stagedName.MatchString(name) && name != quiesceFile &&
			!strings.HasSuffix(name, vfs.TempSuffix):
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
	entries, err := s.readDir(at)
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

// keptPrefix starts the name of a directory in tmp/ in which a removal has left foreign entries. No
// command changes it any more.
const keptPrefix = "kept-"

// removeTxnDir removes a directory of tmp/ except for foreign entries. The files that prove its
// kind go last, so an interrupted removal is recognized. A directory with foreign entries is
// renamed before these files go: without them it would be taken for something else.
func (s *Store) removeTxnDir(dir string) error {
	entries, err := s.readDir(dir)
	if err != nil {
		return err
	}
	k, foreign := s.layoutAt(dir, entries), ""
	for _, e := range entries {
		if foreign, err = s.foreignIn(k, dir, e); foreign != "" || err != nil {
			break
		}
	}
	if err != nil {
		return err
	}
	if foreign != "" {
		k.proven = true
		if _, err := s.removeAllowed(k, dir); err != nil {
			return err
		}
		k.proven = false
		kept := s.path(tmpDir, keptPrefix+uuid.NewString())
		if err := s.fs.Rename(dir, kept); err != nil {
			return err
		}
		dir = kept
		if err := s.fs.SyncDir(s.path(tmpDir)); err != nil {
			return err
		}
	}
	left, err := s.removeAllowed(k, dir)
	if left != "" && err == nil {
		s.log.Warn("a directory in the store's tmp is not removed: it contains files that are not cowblk's", "directory", dir, "found", left)
	}
	return err
}

// removeAllowed removes the permitted entries of a directory, and the directory if it is empty
// then; else it returns what is left.
func (s *Store) removeAllowed(k dirLayout, dir string) (left string, err error) {
	entries, err := s.readDir(dir)
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
		if k.proven && rank(e) >= 0 {
			left = e.Name()
			break // they are the last
		}
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

// checkMapMagic returns nil if a file begins like the map of a layer, which may be damaged or of a
// newer version.
func (s *Store) checkMapMagic(path string) error {
	_, err := layer.ReadHeader(s.fs, path)
	if errors.Is(err, layer.ErrDamaged) || errors.Is(err, layer.ErrUnsupported) {
		return nil
	}
	return err
}

func isUUID(name string) bool {
	_, err := uuid.Parse(name)
	return err == nil && len(name) == len(uuid.Nil.String())
}
