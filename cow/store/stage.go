package store

import (
	"encoding/json"
	"os"
	"strconv"
)

// Everything that a promotion puts in place, forward and back, lies in its work directory before the guest is touched:
// from then on the change takes renames alone, which need no room on the file system, so that it can always be taken
// back. A disk's file is named after its place among the disks.
const (
	stagedAfter  = ".after"
	stagedBefore = ".before"
)

// stage writes the manifests from before and after, and for several disks the records of the change in both directions.
func (p *Pending) stage() error {
	for _, c := range []struct {
		from, to []*Manifest
		suffix   string
	}{{p.before, p.after, stagedAfter}, {p.after, p.before, stagedBefore}} {
		record := change{To: c.to}
		for i, m := range c.to {
			record.From = append(record.From, c.from[i].Head().UUID)
			data, err := document(m)
			if err == nil {
				err = p.w.write(strconv.Itoa(i)+c.suffix, data, filePerm)
			}
			if err != nil {
				return err
			}
		}
		if len(c.to) == 1 {
			continue // one rename happens or does not
		}
		data, err := json.Marshal(record)
		if err == nil {
			err = p.w.write(commitFile+c.suffix, data, filePerm)
		}
		if err != nil {
			return err
		}
	}
	return p.s.fs.SyncDir(p.w.dir)
}

// write makes a file in the work directory, its content durable; its name is with the directory's next sync.
func (w *work) write(name string, data []byte, perm os.FileMode) error {
	f, err := w.s.fs.OpenFile(w.path(name), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, perm)
	if err != nil {
		return err
	}
	if _, err = f.WriteAt(data, 0); err == nil {
		err = f.Datasync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}

// put moves what was staged with this suffix to its places, durably.
func (p *Pending) put(suffix string) error {
	s := p.s
	if len(p.after) > 1 {
		if err := s.fs.Rename(p.w.path(commitFile+suffix), p.w.path(commitFile)); err != nil {
			return err
		}
		if err := s.fs.SyncDir(p.w.dir); err != nil {
			return err
		}
	}
	for i, m := range p.after {
		if err := s.fs.Rename(p.w.path(strconv.Itoa(i)+suffix), s.path(disksDir, m.Name, diskFile)); err != nil {
			return err
		}
		if err := s.fs.SyncDir(s.path(disksDir, m.Name)); err != nil {
			return err
		}
	}
	return nil
}
