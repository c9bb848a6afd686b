package store

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/google/uuid"

	"cowblk/cow/finding"
	"cowblk/cow/imagefile"
	"cowblk/cow/layer"
	"cowblk/cow/vfs"
)

// Files that belong to a store: a disk must not use one by its path.

// refuseStoreFile refuses a file that belongs to this or another store. The store may remove or
// overwrite it at any time.
func (s *Store) refuseStoreFile(what, path string) error {
	if s.contains(path) {
		return s.storeFileError(what, path, path, s.dir)
	}
	extents, err := vfs.Extents(s.fs, path, 0, -1)
	if err != nil {
		return nil // the open reports the error
	}
	for _, e := range extents {
		if e.Path == "" {
			continue
		}
		if s.contains(e.Path) {
			return s.storeFileError(what, path, e.Path, s.dir)
		}
		if dir := storeOf(s.fs, e.Path); dir != "" {
			return s.storeFileError(what, path, e.Path, dir)
		}
	}
	own, err := s.inodeInStore(extents)
	if err == nil && own != "" {
		err = s.storeFileError(what, path, own, s.dir)
	}
	return err
}

// storeFileError returns the error for the file at path that belongs to the store in dir, where its
// path is file, with advice.
func (s *Store) storeFileError(what, path, file, dir string) error {
	found := "a file of " + dir
	if file != path {
		found += ", " + file
	}
	return refused(path, what, "a file that is no store's", found, s.adviseOther(file, dir))
}

// adviseOther says how to make a disk on the content of a store's file.
func (s *Store) adviseOther(file, dir string) string {
	if dir != s.dir {
		return "name a file outside of it"
	}
	if real, err := filepath.EvalSymlinks(file); err == nil {
		file = real
	}
	holder, kind := filepath.Base(filepath.Dir(file)),
		filepath.Base(filepath.Dir(filepath.Dir(file)))
	if kind == imagesDir && CheckName("image", holder) == nil {
		return "make the disk on the image: --from " + holder
	}
	if kind != layersDir || !isUUID(holder) {
		return "name a file that is not in the store's directory"
	}
	disks, _ := s.Disks()
	for _, m := range disks {
		for _, l := range m.Layers {
			if l.UUID.String() != holder {
				continue
			}
			if l.Tag != "" {
				return fmt.Sprintf("make the disk on the tag of this layer: --from %s@%s", m.Name,
					l.Tag)
			}
			return fmt.Sprintf(
				"make the disk on what disk %q holds: cowblk promote %s --tag TAG, then --from %s@TAG", m.Name, m.Name, m.Name)
		}
	}
	return "make the disk on what a disk holds: cowblk promote DISK --tag TAG, then --from DISK@TAG"
}

// contains reports whether a path, with symbolic links resolved, is in the store's directory.
func (s *Store) contains(path string) bool {
	dir, err1 := filepath.EvalSymlinks(s.dir)
	path, err2 := filepath.EvalSymlinks(path)
	if err1 != nil || err2 != nil {
		return false
	}
	rel, err := filepath.Rel(dir, path)
	return err == nil && filepath.IsLocal(rel)
}

// storeOf returns the directory of the store that the file at path lies in; for an image or a layer
// without a store around it, its own directory; empty: none.
func storeOf(fsys vfs.FS, path string) string {
	path, err := filepath.EvalSymlinks(path)
	if err != nil {
		return ""
	}
	for dir, child := filepath.Dir(path), filepath.Base(path); ; dir, child = filepath.Dir(dir),
		filepath.Base(dir) {
		if isStore(fsys, dir, child) {
			return dir
		}
		if dir == filepath.Dir(dir) {
			break
		}
	}
	dir := filepath.Dir(path)
	switch filepath.Base(path) {
	case dataFile, mapFile, checksumsFile:
	default:
		return ""
	}
	if _, err := fsys.Stat(filepath.Join(dir, imageFile)); err == nil {
		return dir
	}
	if id, err := uuid.Parse(filepath.Base(dir)); err == nil {
		if h, err := layer.ReadHeader(fsys, filepath.Join(dir, mapFile)); err == nil &&
			h.UUID == id {
			return dir
		}
	}
	return ""
}

// isStore reports whether a directory is a store: see recognize. child is an entry of it. Without a
// lock file it is one only if the child is a directory of a store, and an image, disk or layer can
// be read.
func isStore(fsys vfs.FS, dir, child string) bool {
	s := &Store{dir: dir, fs: fsys}
	locked, err := s.exists(s.path(lockFile))
	if err != nil {
		return false
	}
	if !locked {
		real := false
		if slices.Contains(storeDirs, child) {
			real, err = s.holdsStoreObject()
		}
		return err == nil && real
	}
	foreign, err := s.findForeign()
	return err == nil && foreign == ""
}

// refuseImportOf refuses to import a file of any store, but for the data of an image or a layer.
func refuseImportOf(fsys vfs.FS, path string) error {
	extents, err := vfs.Extents(fsys, path, 0, -1)
	if err != nil {
		return nil // the open reports the error
	}
	for _, e := range extents {
		if e.Path == "" {
			continue
		}
		dir := storeOf(fsys, e.Path)
		if dir == "" {
			continue
		}
		real, err := filepath.EvalSymlinks(e.Path)
		if err != nil {
			real = e.Path
		}
		kind := filepath.Dir(filepath.Dir(real))
		if filepath.Base(real) == dataFile && (filepath.Dir(real) == dir ||
			kind == filepath.Join(dir, imagesDir) || kind == filepath.Join(dir, layersDir)) {
			continue
		}
		// A file that a user has put beside the store's own is only read.
		if rel, err := filepath.Rel(dir, real); err == nil && rel != lockFile &&
			!slices.Contains(storeDirs, strings.Split(rel, "/")[0]) &&
			isStore(fsys, dir, lockFile) {
			continue
		}
		return refused(path, "image file", "a file that is no store's", "a file of "+dir,
			"move it out of the store's directory if it is not the store's; to read a disk: cowblk export")
	}
	return nil
}

// CheckWritable refuses a file or device that is to be written without a store: one that belongs to
// a store, or that a disk of s uses, served or not, or that the system uses. s nil, or one that
// cannot be read: only other stores and the system. Errors: ErrRefused, ErrInUse.
func CheckWritable(s *Store, path string) error {
	if s == nil || !isStore(s.fs, s.dir, lockFile) {
		s = &Store{fs: vfs.OS{}, log: slog.Default()}
	}
	const advice = "\nserve the disk that lies on it, or a copy; --read-only serves the file as it is"
	err := s.refuseStoreFile("file to write", path)
	var found *finding.Finding
	if errors.As(err, &found) {
		found.Advice = strings.TrimPrefix(advice, "\n")
		return found
	}
	if err == nil && s.dir != "" {
		p := &part{owner: "the file to serve", kind: partData, path: path, n: -1}
		if err = s.refuseUsed([]*part{p}, true); errors.Is(err, ErrInUse) {
			first, _, _ := strings.Cut(err.Error(), "\n")
			return &classified{errors.New(first + advice), ErrInUse}
		}
	}
	if err != nil {
		s.log.Warn("whether disks of the store use the file cannot be determined", "file", path,
			"store", s.dir, "err", err)
	}
	return Classify(imagefile.CheckSystemUse(s.fs, path, ""))
}

// inodeInStore finds a file of the store with the inode of one of the extents: a hard link or a
// bind mount.
func (s *Store) inodeInStore(extents []vfs.Extent) (string, error) {
	want := map[vfs.Inode]bool{}
	for _, e := range extents {
		want[e.Inode] = true
	}
	if s.dir == "" {
		return "", nil
	}
	for _, name := range append([]string{lockFile}, storeDirs...) {
		found, err := s.findInode(s.path(name), want, 0)
		if found != "" || err != nil {
			return found, err
		}
	}
	return "", nil
}

// maxStoreDepth is the number of directories from one of storeDirs to a file:
// tmp/TXN/layers/UUID/data.
const maxStoreDepth = 3

// findInode returns a file at or below path with one of the inodes. It follows symbolic links to
// directories only where a store may have them: at one of storeDirs and at its entries.
func (s *Store) findInode(path string, want map[vfs.Inode]bool, depth int) (string, error) {
	st, err := s.fs.Stat(path)
	if err != nil {
		return "", nil // removed meanwhile, or a link to nothing
	}
	if !st.IsDir() {
		sys, ok := st.Sys().(*syscall.Stat_t)
		if ok && st.Mode().IsRegular() && want[vfs.Inode{Dev: sys.Dev, Inode: sys.Ino}] {
			return path, nil
		}
		return "", nil
	}
	entries, err := s.fs.ReadDir(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	for _, e := range entries {
		if depth == maxStoreDepth && e.IsDir() || depth > 0 && e.Type()&fs.ModeSymlink != 0 &&
			s.isDir(path, e.Name()) {
			continue
		}
		found, err := s.findInode(filepath.Join(path, e.Name()), want, depth+1)
		if found != "" || err != nil {
			return found, err
		}
	}
	return "", nil
}

func (s *Store) isDir(elem ...string) bool {
	st, err := s.fs.Stat(filepath.Join(elem...))
	return err == nil && st.IsDir()
}
