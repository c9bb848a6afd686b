package store

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"

	"github.com/google/uuid"

	"cowblk/cow/vfs"
)

const journalFile = "journal.json"

// journal is what a work directory says about layers outside it: those that were put in place, or are about to lose
// their last user. If the process dies, whoever cleans up removes those that nobody needs.
type journal struct {
	Layers []uuid.UUID `json:"layers"`
	// Disks are the disks whose manifests were to name the layers. Absent in what earlier versions have written.
	Disks []string `json:"disks,omitempty"`
}

// work is a directory under tmp in which one operation builds. Its flock shows that the process is alive.
type work struct {
	s       *Store
	dir     string
	lock    vfs.File
	journal journal
	// done: what the journal lists is named, durably, and not to be looked up.
	done bool
	// unfinished leaves the directory to the next command: what it is about may not be durable.
	unfinished bool
}

// begin makes a work directory, after cleaning those of processes that are gone. The caller must end it.
func (s *Store) begin(ctx context.Context) (*work, error) {
	w := &work{s: s, dir: s.path(tmpDir, uuid.NewString())}
	err := s.locked(ctx, func() error {
		_ = s.clean() // logged; what it could not finish concerns those who open the disks
		if err := s.fs.MkdirAll(s.path(tmpDir), dirPerm); err != nil {
			return err
		}
		if err := s.fs.Mkdir(w.dir, dirPerm); err != nil {
			return err
		}
		// Locked before the store's lock is given up: nobody finds it free while its owner lives.
		f, err := s.fs.OpenFile(filepath.Join(w.dir, lockFile), os.O_RDWR|os.O_CREATE, filePerm)
		if err == nil {
			if err = f.Lock(true); err != nil {
				f.Close()
			}
		}
		if err != nil {
			_ = s.fs.RemoveAll(w.dir)
			return err
		}
		w.lock = f
		return nil
	})
	if err != nil {
		return nil, err
	}
	// The journal must not get lost with the name of its directory.
	if err := s.fs.SyncDir(s.path(tmpDir)); err != nil {
		w.end()
		return nil, err
	}
	return w, nil
}

// moveBack undoes a rename between this directory and dir, one of the store's, that could not be made durable. The way
// back must be, before the journal goes and the layers on it: else a power cut may leave a disk without its layers, or
// layers that nobody names.
func (w *work) moveBack(from, to, dir string) error {
	err := w.s.fs.Rename(from, to)
	if err != nil || w.s.fs.SyncDir(w.s.path(dir)) != nil {
		w.unfinished = true
	}
	return err
}

func (w *work) path(elem ...string) string {
	return filepath.Join(append([]string{w.dir}, elem...)...)
}

// note records layers in the journal, durably, which only the disk's manifest may name, or which lie below those that it
// names: the highest ones first.
func (w *work) note(disk string, layers ...uuid.UUID) error {
	w.journal.Layers = append(w.journal.Layers, layers...)
	if !slices.Contains(w.journal.Disks, disk) {
		w.journal.Disks = append(w.journal.Disks, disk)
	}
	data, err := json.Marshal(w.journal)
	if err != nil {
		return err
	}
	return w.s.fs.WriteFileAtomic(w.path(journalFile), data, filePerm)
}

// end removes the work directory, and after a failure the layers of the journal that nobody needs. A failure here is
// logged, not returned: the operation itself is done or undone already, and the next command tries again.
func (w *work) end() {
	defer w.lock.Close()
	if w.unfinished {
		return
	}
	// Not the operation's context: an interrupted operation must clean up too.
	err := w.discard()
	if err != nil {
		w.s.log.Warn("cannot clean up, the next command will try again", "directory", w.dir, "err", err)
	}
}

func (w *work) discard() error {
	if len(w.journal.Layers) == 0 {
		return w.s.removeWork(w.dir)
	}
	// The store's lock, also where nothing is to be looked up: a check that has read a manifest before the change must
	// still find the new layer in the journal.
	err := w.s.locked(context.Background(), func() error {
		if !w.done {
			return w.s.discard(w.dir, w.journal)
		}
		for _, name := range []string{commitFile, journalFile} {
			if err := w.s.fs.Remove(w.path(name)); err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
		}
		return nil
	})
	if err != nil || !w.done {
		return err
	}
	// The rest is garbage for whoever finds it, whether it is still locked or not. The store need not wait for that.
	return w.s.removeWork(w.dir)
}
