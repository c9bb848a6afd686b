package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"

	"cowblk/cow/strictjson"
)

// quiesceFile, in a disk's directory, is there while the disk's guest is made to hold still for a promotion. A process that
// finds one of a dead process lets the guest go on.
const quiesceFile = "quiesced.json"

// SetQuiesceRecord keeps v, durably, as the note of a disk whose lock the caller holds; nil takes the note back.
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
		return fmt.Errorf("disk %q: note of a guest being quiesced: %w", name, err)
	}
	return nil
}

// DropQuiesceRecord takes the note back of a disk that nobody has open; ErrInUse.
func (s *Store) DropQuiesceRecord(name string) error {
	lock, err := s.LockDisk(name)
	if err != nil {
		return err
	}
	return errors.Join(s.SetQuiesceRecord(name, nil), lock.Unlock())
}

// QuiesceRecord reads a disk's note into v; false if there is none.
func (s *Store) QuiesceRecord(name string, v any) (bool, error) {
	path := s.path(disksDir, name, quiesceFile)
	data, err := s.readBounded(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err == nil {
		err = strictjson.Decode(data, v, strictjson.Options{})
	}
	if err != nil {
		return false, fmt.Errorf("disk %q: note of a guest being quiesced: %s: %w", name, path, err)
	}
	return true, nil
}
