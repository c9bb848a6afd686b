package layer

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"cowblk/cow/finding"
	"cowblk/cow/vfs"
)

// CheckPaths returns an ErrMismatch if the layer's paths do not lead to its open files any more:
// they were removed or replaced.
func (l *Layer) CheckPaths() error {
	for _, f := range []struct {
		path string
		open vfs.File
	}{{l.paths.Map, l.mapf}, {l.paths.Data, l.Data()}} {
		expected, err := f.open.Identity()
		if err != nil {
			return err
		}
		found, err := l.identity(f.path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return l.pathError(f.path, "none: it was removed")
		case err != nil:
			return err
		case !expected.SameFile(found):
			return l.pathError(f.path, "another file, with which it was replaced")
		}
	}
	return nil
}

func (l *Layer) pathError(path, found string) error {
	return finding.New(ErrMismatch, path,
		fmt.Sprintf("file of layer %s, which is open", l.Header().UUID), "the open file", found,
		"what is written is only in the open file: copy the disk from within the guest before this process ends")
}

func (l *Layer) identity(path string) (vfs.Identity, error) {
	f, err := l.fs.OpenFile(path, os.O_RDONLY, 0)
	if err != nil {
		return vfs.Identity{}, err
	}
	defer f.Close()
	return f.Identity()
}
