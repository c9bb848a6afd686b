package store

import (
	"errors"
	"io/fs"
	"strings"
)

// mayBecome refuses to make a store of a directory that holds something else: a file system's root, somebody's home. What
// is in its tmp/ is no work of cowblk's, and its mode is not cowblk's to set. The directory has no lock file.
func (s *Store) mayBecome() error {
	entries, err := s.fs.ReadDir(s.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		switch name := e.Name(); {
		case name == lockFile:
			return nil // another process has made the store just now
		case name == "lost+found" || strings.HasPrefix(name, "."):
		case s.path(name) == s.runDir: // with sockets
		case s.looksOwn(name): // a power cut has taken the lock file away
		default:
			return invalidf("store %s: expected a store or an empty directory, found %s in it, and no lock file of a store\nname a directory of its own",
				s.dir, PathText(name))
		}
	}
	return nil
}

// looksOwn reports whether one of the directories of a store holds what cowblk puts there, and nothing else.
func (s *Store) looksOwn(dir string) bool {
	own := map[string]func(e fs.DirEntry) bool{
		tmpDir:     isWork,
		layersDir:  func(e fs.DirEntry) bool { return isWork(e) && !isRemoval(e.Name()) },
		refsDir:    func(fs.DirEntry) bool { return true },
		reserveDir: func(e fs.DirEntry) bool { return !e.IsDir() },
		imagesDir:  func(e fs.DirEntry) bool { return s.holds(dir, e, imageFile) },
		disksDir:   func(e fs.DirEntry) bool { return s.holds(dir, e, diskFile) },
	}[dir]
	if own == nil {
		return false
	}
	entries, err := s.fs.ReadDir(s.path(dir))
	if err != nil {
		return false
	}
	for _, e := range entries {
		if !own(e) {
			return false
		}
	}
	return true
}

func (s *Store) holds(dir string, e fs.DirEntry, file string) bool {
	there, err := s.exists(s.path(dir, e.Name(), file))
	return err == nil && there
}
