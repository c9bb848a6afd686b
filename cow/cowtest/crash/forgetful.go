package crash

import (
	"io/fs"
	"path"
	"strings"

	"cowblk/cow/cowtest/faultfs"
	"cowblk/cow/vfs"
)

// forgetful is a process of a version before the index of manifests, as far as that goes: it neither sees nor changes it.
type forgetful struct{ *faultfs.Process }

var indexPath = path.Join(storeDir, "index")

func (forgetful) unseen(op, name string) error {
	if name == indexPath || strings.HasPrefix(name, indexPath+"/") {
		return &fs.PathError{Op: op, Path: name, Err: fs.ErrNotExist}
	}
	return nil
}

// OpenFile implements vfs.FS.
func (f forgetful) OpenFile(name string, flag int, perm fs.FileMode) (vfs.File, error) {
	if err := f.unseen("open", name); err != nil {
		return nil, err
	}
	return f.Process.OpenFile(name, flag, perm)
}

// Mkdir implements vfs.FS.
func (f forgetful) Mkdir(name string, perm fs.FileMode) error {
	if err := f.unseen("mkdir", name); err != nil {
		return err
	}
	return f.Process.Mkdir(name, perm)
}

// MkdirAll implements vfs.FS.
func (f forgetful) MkdirAll(name string, perm fs.FileMode) error {
	if err := f.unseen("mkdir", name); err != nil {
		return err
	}
	return f.Process.MkdirAll(name, perm)
}

// version has the next changes made by another version of the program: older knows no index.
func (pl *player) version(s Step) (err error) {
	if s.Name == "older" {
		pl.s, err = openStore(forgetful{pl.p})
	} else {
		pl.s, err = openStore(pl.p)
	}
	pl.out.count(s.String())
	return err
}
