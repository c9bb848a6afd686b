package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"cowblk/cow/vfs"
)

// memoryName returns the file name of the Serving record in memory, which replaces a lock file that
// is not writable. It contains the inode of the lock file, so stores do not share it.
func memoryName(id vfs.Identity) string {
	return fmt.Sprintf("serving-%x-%d.json", id.Dev, id.Inode)
}

// writeMemory writes the record to a directory in memory.
func (l *Lock) writeMemory(v Serving) error {
	sfs, ok := l.s.fs.(vfs.SharedFS)
	if !ok {
		return errors.ErrUnsupported
	}
	id, err := l.file.Identity()
	if err != nil {
		return err
	}
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	var errs []error
	for _, dir := range l.s.SharedDirs() {
		err := sfs.MakeSharedDir(dir)
		if err == nil {
			l.removeMemory()
			l.memoryPath = filepath.Join(dir, memoryName(id))
			if err = writeShared(sfs, l.memoryPath, append(data, '\n')); err == nil {
				return nil
			}
			l.removeMemory()
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func writeShared(sfs vfs.SharedFS, path string, data []byte) error {
	f, err := sfs.OpenShared(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, filePerm)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(data, 0)
	return errors.Join(err, f.Close())
}

// removeMemory removes the record from memory, if there is one.
func (l *Lock) removeMemory() {
	if l.memoryPath == "" {
		return
	}
	if err := l.s.fs.Remove(l.memoryPath); err != nil && !errors.Is(err, os.ErrNotExist) {
		l.s.log.Warn("the record of a served disk could not be removed from memory", "disk", l.name,
			"err", err)
	}
	l.memoryPath = ""
}

// readMemory reads the record of a lock file from memory.
func (s *Store) readMemory(id vfs.Identity) (v Serving, ok bool) {
	sfs, ok := s.fs.(vfs.SharedFS)
	if !ok {
		return v, false
	}
	for _, dir := range s.SharedDirs() {
		data, err := readShared(sfs, filepath.Join(dir, memoryName(id)))
		if err != nil {
			continue
		}
		if v, err := decodeServing(data); err == nil {
			return v, true
		}
	}
	return Serving{}, false
}

// readShared reads a file in memory that belongs to this user or root: another user may own a
// directory of that name.
func readShared(sfs vfs.SharedFS, path string) ([]byte, error) {
	f, err := sfs.OpenShared(path, os.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.NewSectionReader(f, 0, maxServing))
}
