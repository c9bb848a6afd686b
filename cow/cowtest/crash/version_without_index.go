package crash

import (
	"io/fs"
	"path"
	"strings"

	"cowblk/cow/cowtest/faultfs"
	"cowblk/cow/vfs"
)

// processWithoutIndex is a process of a version before the index of manifests: it neither sees nor
// changes the index.
type processWithoutIndex struct{ *faultfs.Process }

var indexPath = path.Join(storeDir, "index")

func (processWithoutIndex) hidden(op, name string) error {
	if name == indexPath || strings.HasPrefix(name, indexPath+"/") {
		return &fs.PathError{Op: op, Path: name, Err: fs.ErrNotExist}
	}
	return nil
}

// OpenFile implements vfs.FS.
func (f processWithoutIndex) OpenFile(name string, flag int, perm fs.FileMode) (vfs.File, error) {
	if err := f.hidden("open", name); err != nil {
		return nil, err
	}
	return f.Process.OpenFile(name, flag, perm)
}

// Mkdir implements vfs.FS.
func (f processWithoutIndex) Mkdir(name string, perm fs.FileMode) error {
	if err := f.hidden("mkdir", name); err != nil {
		return err
	}
	return f.Process.Mkdir(name, perm)
}

// MkdirAll implements vfs.FS.
func (f processWithoutIndex) MkdirAll(name string, perm fs.FileMode) error {
	if err := f.hidden("mkdir", name); err != nil {
		return err
	}
	return f.Process.MkdirAll(name, perm)
}

// version selects the version of the program for the next changes: older knows no index.
func (pl *player) version(s Step) (err error) {
	if s.Name == "older" {
		pl.s, err = openStore(processWithoutIndex{pl.p})
	} else {
		pl.s, err = openStore(pl.p)
	}
	pl.out.count(s.String())
	return err
}
