package store

import (
	"fmt"
	"path/filepath"

	"github.com/google/uuid"

	"cowblk/cow/layer"
	"cowblk/cow/vfs"
)

// Files that belong to a store: a disk must not use one by its path.

// refuseStoreFile refuses a file that belongs to this or another store. The store may remove it at
// any time.
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
	holder, kind := filepath.Base(filepath.Dir(file)), filepath.Base(filepath.Dir(filepath.Dir(file)))
	if kind == imagesDir && CheckName("image", holder) == nil {
		return "make the disk on the image: --from " + holder
	}
	disks, _ := s.Disks()
	for _, m := range disks {
		for _, l := range m.Layers {
			if kind != layersDir || l.UUID.String() != holder {
				continue
			}
			if l.Tag != "" {
				return fmt.Sprintf("make the disk on the tag of this layer: --from %s@%s", m.Name, l.Tag)
			}
			return fmt.Sprintf("make the disk on what disk %q holds: cowblk promote %s --tag TAG, then --from %s@TAG", m.Name, m.Name, m.Name)
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

// StoreOf returns the directory of the layer or image that a file belongs to; empty: none. It also
// checks the files below a loop device or a partition.
func StoreOf(path string) string {
	extents, err := vfs.Extents(vfs.OS{}, path, 0, -1)
	if err != nil {
		return ""
	}
	for _, e := range extents {
		if dir := storeOf(vfs.OS{}, e.Path); dir != "" {
			return dir
		}
	}
	return ""
}

// storeOf returns the directory of the layer or image of any store that a file belongs to:
// images/NAME with image.json, or layers/UUID with the map of that layer; empty: none.
func storeOf(fsys vfs.FS, path string) string {
	if path == "" {
		return ""
	}
	path, err := filepath.EvalSymlinks(path)
	if err != nil {
		return ""
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
		if h, err := layer.ReadHeader(fsys, filepath.Join(dir, mapFile)); err == nil && h.UUID == id {
			return dir
		}
	}
	return ""
}

// inodeInStore finds a file of the store with the inode of one of the extents: a hard link or a
// bind mount.
func (s *Store) inodeInStore(extents []vfs.Extent) (string, error) {
	want := map[vfs.Inode]bool{}
	for _, e := range extents {
		want[e.Inode] = true
	}
	for _, d := range []struct {
		dir   string
		files []string
	}{{imagesDir, []string{dataFile}}, {layersDir, []string{mapFile, dataFile, checksumsFile}}} {
		entries, err := s.readDir(s.path(d.dir))
		if err != nil {
			return "", err
		}
		for _, e := range entries {
			for _, name := range d.files {
				path := s.path(d.dir, e.Name(), name)
				found, err := vfs.Extents(s.fs, path, 0, -1)
				if err == nil && want[found[0].Inode] {
					return path, nil
				}
			}
		}
	}
	return "", nil
}
