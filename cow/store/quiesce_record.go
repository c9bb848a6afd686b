package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
)

// quiesceFile is in a disk's directory while a promotion has the disk's guest quiesced. A process
// that finds the record of a dead process thaws the guest.
const quiesceFile = "quiesced.json"

// SetQuiesceRecord durably writes v as the quiesce record of a disk; nil removes the record. The
// caller holds the disk's lock.
func (s *Store) SetQuiesceRecord(name string, v any) error {
	path := s.path(disksDir, name, quiesceFile)
	var err error
	if v != nil {
		var data []byte
		if data, err = json.Marshal(v); err == nil {
			err = s.fs.WriteFileAtomic(path, append(data, '\n'), 0o600)
		}
	} else if err = s.fs.Remove(path); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("disk %q: quiesce record: %w", name, err)
	}
	return nil
}

// DropQuiesceRecord removes the quiesce record of a disk. ErrInUse: a process has the disk open.
func (s *Store) DropQuiesceRecord(name string) error {
	lock, err := s.LockDisk(name)
	if err != nil {
		return err
	}
	return errors.Join(s.SetQuiesceRecord(name, nil), lock.Unlock())
}

// QuiesceRecord reads a disk's quiesce record into v; false if there is none.
func (s *Store) QuiesceRecord(name string, v any) (bool, error) {
	exists, err := s.readJSON(s.path(disksDir, name, quiesceFile), v)
	if err != nil {
		return false, fmt.Errorf("disk %q: quiesce record: %w", name, err)
	}
	return exists, nil
}
