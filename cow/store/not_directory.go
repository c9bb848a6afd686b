package store

import (
	"errors"
	"fmt"
	"io/fs"
)

// NotDirectory is an entry of images/ or disks/ with a valid name that is not a directory: a file,
// a FIFO, a symbolic link to anything else. It blocks the name.
type NotDirectory struct {
	Kind string // KindImage or KindDisk, by its place
	Name string
	Path string
	What string // "a FIFO"
}

// Err returns the error of a command for that name. It is an ErrRefused.
func (t *NotDirectory) Err() error {
	return refused(t.Path, t.Kind, "a directory", t.What, adviceNotDirectory)
}

const adviceNotDirectory = "nothing can have its name as long as it is there: see what it is, and move it out of the store"

// NotDirectories lists the entries of images/, then of disks/, each in the order of names.
func (s *Store) NotDirectories() ([]*NotDirectory, error) {
	var all []*NotDirectory
	for _, kind := range []string{KindImage, KindDisk} {
		entries, err := s.readDir(s.path(dirOf(kind)))
		if err != nil {
			return all, fmt.Errorf("store %s: %w", s.dir, err)
		}
		for _, e := range entries {
			if e.IsDir() || CheckName("", e.Name()) != nil {
				continue
			}
			if t := s.notDirectory(kind, e.Name()); t != nil {
				all = append(all, t)
			}
		}
	}
	return all, nil
}

func dirOf(kind string) string {
	if kind == KindImage {
		return imagesDir
	}
	return disksDir
}

// notDirectory returns the entry at the place of an image or a disk if it is not a directory; else
// nil.
func (s *Store) notDirectory(kind, name string) *NotDirectory {
	path := s.path(dirOf(kind), name)
	fi, err := s.lstat(path)
	if err != nil || fi.IsDir() {
		return nil
	}
	what := fileText(fi.Mode())
	if fi.Mode().Type() == fs.ModeSymlink {
		switch to, err := s.fs.Stat(path); {
		case err == nil && to.IsDir():
			return nil
		case err == nil:
			what = "a symbolic link to " + fileText(to.Mode())
		case errors.Is(err, fs.ErrNotExist):
			what = "a symbolic link to nothing"
		default:
			what = "a symbolic link that leads nowhere"
		}
	}
	return &NotDirectory{Kind: kind, Name: name, Path: path, What: what}
}

func fileText(mode fs.FileMode) string {
	switch mode.Type() {
	case 0:
		return "a file"
	case fs.ModeNamedPipe:
		return "a FIFO"
	case fs.ModeSocket:
		return "a socket"
	}
	return "a device"
}
