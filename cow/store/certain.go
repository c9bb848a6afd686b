package store

import (
	"errors"
	"io/fs"
	"path/filepath"
)

// certain makes durable what a dead process has changed, perhaps without syncing it: the names of images, layers and
// disks, and of the manifests, and what its work directory says. Others find these changes made and rely on them, so a
// power cut must not take them back. The store's lock is held.
func (s *Store) certain(work string) error {
	dirs := []string{work, s.dir, s.path(imagesDir), s.path(layersDir), s.path(disksDir)}
	names, err := s.names(disksDir)
	if err != nil {
		return err
	}
	for _, name := range names {
		dirs = append(dirs, filepath.Join(s.path(disksDir), name))
	}
	for _, dir := range dirs {
		if err := s.fs.SyncDir(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}
