package store

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strconv"

	"github.com/google/uuid"

	"cowblk/cow/strictjson"
)

// commitFile, in the directory of a transaction, is the commit record of a change of several disks.
// Once it is durable, recovery finishes the change on all of them if the process dies.
const commitFile = "commit.json"

// The files of a promotion and of its reversal are staged in the transaction before the guest is
// quiesced. From then on the change only renames files, which needs no space, so it can always be
// undone. A file is named after the index of its disk.
const (
	stagedAfter  = ".after"
	stagedBefore = ".before"
)

// change is the content of commitFile. The record may outlive the change if its directory cannot be
// removed, so recovery changes only disks that still have their old head.
type change struct {
	From []uuid.UUID `json:"from"` // the disks' heads before
	To   []*Manifest `json:"to"`   // the disks afterwards
}

// disks returns the names of the changed disks. c may be nil.
func (c *change) disks() (names []string) {
	if c != nil {
		for _, m := range c.To {
			names = append(names, m.Name)
		}
	}
	return names
}

// rollForward finishes the change of several disks that a dead process has committed. c may be nil.
// It skips a disk with a damaged manifest, and the returned error concerns that disk. Any other
// error concerns all disks of the change. The caller holds the store's lock.
func (s *Store) rollForward(dir string, c *change) error {
	if c == nil {
		return nil
	}
	damaged := &unfinishedError{}
	for i, m := range c.To {
		now, err := s.Disk(m.Name)
		if errors.Is(err, ErrNotFound) {
			exists, serr := s.exists(s.path(disksDir, m.Name))
			if serr == nil && !exists {
				continue
			}
			err = errors.Join(err, serr)
		}
		if err != nil && isDamage(err) {
			damaged.disks, damaged.err = append(damaged.disks, m.Name), errors.Join(damaged.err,
				err)
			continue
		}
		if err != nil {
			return &unfinishedError{disks: c.disks(), err: err}
		}
		if now.Head().UUID != c.From[i] {
			continue // finished, or changed again
		}
		if err := s.finishDisk(dir, i, m); err != nil {
			return &unfinishedError{disks: c.disks(), err: err}
		}
		s.log.Info("finished an interrupted change of several disks", "disk", m.Name)
	}
	if damaged.err != nil {
		return damaged
	}
	return nil
}

// finishDisk installs the manifest of disk i of a change. It renames the staged file of the dead
// process if there is one, which needs no space. The directory may have staged files of both
// directions.
func (s *Store) finishDisk(dir string, i int, m *Manifest) error {
	to := s.path(disksDir, m.Name, diskFile)
	want, err := document(m)
	if err != nil {
		return err
	}
	for _, suffix := range []string{stagedAfter, stagedBefore} {
		from := filepath.Join(dir, strconv.Itoa(i)+suffix)
		if staged, err := s.fs.ReadFile(from); err != nil || !bytes.Equal(staged, want) {
			continue
		}
		if err := s.fs.Rename(from, to); err != nil {
			return err
		}
		return s.fs.SyncDir(filepath.Dir(to))
	}
	return s.writeDocument(to, m)
}

// readChange reads the commit record of a transaction; nil: none.
func (s *Store) readChange(dir string) (*change, error) {
	path := filepath.Join(dir, commitFile)
	data, err := s.readBounded(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	c := new(change)
	if err := c.decode(data); err != nil {
		return nil, refused(path, "record of a change of several disks",
			"a document of the form in FORMAT.md", err.Error(),
			"the intended change is unknown: compare the tags of the disks, then move the directory of the record out of the store")
	}
	return c, nil
}

// decode decodes a commit record and checks its manifests.
func (c *change) decode(data []byte) error {
	if err := strictjson.Decode(data, c, strictjson.Options{}); err != nil {
		return err
	}
	if len(c.From) != len(c.To) {
		return fmt.Errorf("%d heads for %d disks", len(c.From), len(c.To))
	}
	for i, m := range c.To {
		if m == nil || m.Version != formatVersion {
			return fmt.Errorf("disk %d: expected a manifest of version %d", i, formatVersion)
		}
		if err := CheckName("disk", m.Name); err != nil {
			return err
		}
		if err := m.check(m.Name); err != nil {
			return fmt.Errorf("disk %q: %w", m.Name, err)
		}
	}
	return nil
}
