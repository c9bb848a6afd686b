package vfs

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// TempSuffix marks a file that an interrupted WriteAtomic has not renamed. The next WriteAtomic of
// the same name overwrites it.
const TempSuffix = ".new"

// WriteAtomic implements FS.WriteFileAtomic with other operations of fsys: write a new file, sync
// it, rename it, sync the directory. Writers of one name must exclude each other.
func WriteAtomic(fsys FS, name string, data []byte, perm fs.FileMode) error {
	temp := name + TempSuffix
	if err := writeNew(fsys, temp, data, perm); err != nil {
		// The rest of a file is harmless; the caller needs the reason of the failure.
		_ = fsys.Remove(temp)
		return fmt.Errorf("write %s: %w", name, err)
	}
	if err := fsys.Rename(temp, name); err != nil {
		_ = fsys.Remove(temp)
		return fmt.Errorf("write %s: %w", name, err)
	}
	if err := fsys.SyncDir(filepath.Dir(name)); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return nil
}

func writeNew(fsys FS, name string, data []byte, perm fs.FileMode) error {
	f, err := fsys.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, perm)
	if err != nil {
		return err
	}
	if _, err := f.WriteAt(data, 0); err != nil {
		f.Close()
		return err
	}
	if err := f.Datasync(); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}
