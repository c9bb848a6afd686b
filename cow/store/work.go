package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/google/uuid"

	"cowblk/cow/layer"
	"cowblk/cow/vfs"
)

const journalFile = "journal.json"

// journal is what a work directory says about things outside it: layers that were put in place, or are about to
// lose their last user. If the process dies, whoever cleans up removes those that no manifest names.
type journal struct {
	Layers []uuid.UUID `json:"layers"`
}

// work is a directory under tmp in which one operation builds. Its flock shows that the process is alive.
type work struct {
	s       *Store
	dir     string
	lock    vfs.File
	journal journal
	// unfinished leaves the directory to the next command: what it is about may not be durable.
	unfinished bool
}

// begin makes a work directory, after cleaning those of processes that are gone. The caller must end it.
func (s *Store) begin(ctx context.Context) (*work, error) {
	w := &work{s: s, dir: s.path(tmpDir, uuid.NewString())}
	err := s.locked(ctx, func() error {
		_ = s.clean() // logged; what it could not finish concerns those who open the disks
		if err := s.fs.MkdirAll(w.dir, 0o755); err != nil {
			return err
		}
		// Locked before the store's lock is given up: nobody finds it free while its owner lives.
		f, err := s.fs.OpenFile(filepath.Join(w.dir, lockFile), os.O_RDWR|os.O_CREATE, 0o644)
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

// note records layers in the journal, durably.
func (w *work) note(layers ...uuid.UUID) error {
	w.journal.Layers = append(w.journal.Layers, layers...)
	data, err := json.Marshal(w.journal)
	if err != nil {
		return err
	}
	return w.s.fs.WriteFileAtomic(w.path(journalFile), data, 0o644)
}

// end removes the work directory and those layers of the journal that no manifest names: after a success of create,
// none; after a success of remove, all; after a failure, what had been put in place. A failure here is logged, not
// returned: the operation itself is done or undone already, and the next command tries again.
func (w *work) end() {
	defer w.lock.Close()
	if w.unfinished {
		return
	}
	// Not the operation's context: an interrupted operation must clean up too.
	err := w.s.locked(context.Background(), func() error { return w.s.discard(w.dir, w.journal) })
	if err != nil {
		w.s.log.Warn("cannot clean up, the next command will try again", "directory", w.dir, "err", err)
	}
}

// errUnfinished marks a change that may not be durable, or of several disks that may have reached only some of them.
var errUnfinished = errors.New("an interrupted change cannot be finished")

// clean finishes and discards the work directories of processes that are gone. What it cannot do is logged, and only an
// errUnfinished returned. The store's lock is held.
func (s *Store) clean() (unfinished error) {
	entries, err := s.fs.ReadDir(s.path(tmpDir))
	if err != nil {
		return nil // none, or the operation itself will meet the same error
	}
	for _, e := range entries {
		dir := s.path(tmpDir, e.Name())
		if err := s.cleanOne(dir); err != nil {
			s.log.Warn("cannot clean up after an interrupted command", "directory", dir, "err", err)
			if errors.Is(err, errUnfinished) {
				unfinished = errors.Join(unfinished, err)
			}
		}
	}
	return unfinished
}

func (s *Store) cleanOne(dir string) error {
	f, err := s.fs.OpenFile(filepath.Join(dir, lockFile), os.O_RDWR, 0)
	switch {
	case errors.Is(err, os.ErrNotExist):
		// begin makes directory and lock file while it holds the store's lock, as we do now: its process is gone.
	case err != nil:
		return err
	default:
		defer f.Close()
		if err := f.Lock(true); errors.Is(err, vfs.ErrLocked) {
			return nil
		} else if err != nil {
			return err
		}
	}
	if err := s.certain(dir); err != nil {
		return fmt.Errorf("%w: %w", errUnfinished, err)
	}
	if err := s.rollForward(dir); err != nil {
		return fmt.Errorf("%w: %w", errUnfinished, err)
	}
	j, err := s.readJournal(dir)
	if err != nil {
		return err
	}
	s.log.Info("cleaning up after an interrupted command", "directory", dir)
	return s.discard(dir, j)
}

// discard removes the layers of j that no manifest names, then dir. The store's lock is held.
func (s *Store) discard(dir string, j journal) error {
	if len(j.Layers) > 0 {
		users, err := s.layerUsers()
		if err != nil {
			// A manifest that cannot be read might name any of them.
			return fmt.Errorf("layers %s are kept: %w", listText(uuidTexts(j.Layers)), err)
		}
		for _, id := range j.Layers {
			if len(users[id]) > 0 {
				continue
			}
			// No manifest names it any more, durably. What cannot be removed takes memory until the kernel stops.
			_ = layer.RemoveShared(s.fs, layer.Paths{Map: s.path(layersDir, id.String(), mapFile)})
			if err := s.fs.RemoveAll(s.path(layersDir, id.String())); err != nil {
				return err
			}
		}
		// Before the journal goes: of a layer that a power cut brings back nobody else knows.
		if err := s.fs.SyncDir(s.path(layersDir)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return s.fs.RemoveAll(dir)
}
