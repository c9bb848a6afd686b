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

// txn is a directory under tmp in which one operation builds. Its flock shows that the process is alive.
type txn struct {
	s       *Store
	dir     string
	lock    vfs.File
	journal journal
	// committed: what the journal lists is named, durably, and not to be looked up.
	committed bool
	// unresolved leaves the directory to the next command: what it is about may not be durable.
	unresolved bool
}

// begin makes a work directory, after cleaning those of processes that are gone. The caller must end it.
func (s *Store) begin(ctx context.Context) (*txn, error) {
	tx := &txn{s: s, dir: s.path(tmpDir, uuid.NewString())}
	err := s.locked(ctx, func() error {
		_ = s.recoverStaleTxns() // logged; what it could not finish concerns those who open the disks
		if err := s.fs.MkdirAll(s.path(tmpDir), dirPerm); err != nil {
			return err
		}
		if err := s.fs.Mkdir(tx.dir, dirPerm); err != nil {
			return err
		}
		// Locked before the store's lock is given up: nobody finds it free while its owner lives.
		f, err := s.fs.OpenFile(filepath.Join(tx.dir, lockFile), os.O_RDWR|os.O_CREATE, filePerm)
		if err == nil {
			if err = f.Lock(true); err != nil {
				f.Close()
			}
		}
		if err != nil {
			_ = s.fs.RemoveAll(tx.dir)
			return err
		}
		tx.lock = f
		return nil
	})
	if err != nil {
		return nil, err
	}
	// The journal must not get lost with the name of its directory.
	if err := s.fs.SyncDir(s.path(tmpDir)); err != nil {
		tx.close()
		return nil, err
	}
	return tx, nil
}

// undoRename undoes a rename between this directory and dir, one of the store's, that could not be made durable. The way
// back must be, before the journal goes and the layers on it: else a power cut may leave a disk without its layers, or
// layers that nobody names.
func (tx *txn) undoRename(from, to, dir string) error {
	err := tx.s.fs.Rename(from, to)
	if err != nil || tx.s.fs.SyncDir(tx.s.path(dir)) != nil {
		tx.unresolved = true
	}
	return err
}

func (tx *txn) path(elem ...string) string {
	return filepath.Join(append([]string{tx.dir}, elem...)...)
}

// journalLayers records layers in the journal, durably, which only the disk's manifest may name, or which lie below those that it
// names: the highest ones first.
func (tx *txn) journalLayers(disk string, layers ...uuid.UUID) error {
	tx.journal.Layers = append(tx.journal.Layers, layers...)
	if !slices.Contains(tx.journal.Disks, disk) {
		tx.journal.Disks = append(tx.journal.Disks, disk)
	}
	data, err := json.Marshal(tx.journal)
	if err != nil {
		return err
	}
	return tx.s.fs.WriteFileAtomic(tx.path(journalFile), data, filePerm)
}

// close removes the work directory, and after a failure the layers of the journal that nobody needs. A failure here is
// logged, not returned: the operation itself is done or undone already, and the next command tries again.
func (tx *txn) close() {
	defer tx.lock.Close()
	if tx.unresolved {
		return
	}
	// Not the operation's context: an interrupted operation must clean up too.
	err := tx.cleanUp()
	if err != nil {
		tx.s.log.Warn("cannot clean up, the next command will try again", "directory", tx.dir, "err", err)
	}
}

func (tx *txn) cleanUp() error {
	if len(tx.journal.Layers) == 0 {
		return tx.s.removeTxnDir(tx.dir)
	}
	// The store's lock, also where nothing is to be looked up: a check that has read a manifest before the change must
	// still find the new layer in the journal.
	err := tx.s.locked(context.Background(), func() error {
		if !tx.committed {
			return tx.s.rollBackTxn(tx.dir, tx.journal)
		}
		for _, name := range []string{commitFile, journalFile} {
			if err := tx.s.fs.Remove(tx.path(name)); err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
		}
		return nil
	})
	if err != nil || !tx.committed {
		return err
	}
	// The rest is garbage for whoever finds it, whether it is still locked or not. The store need not wait for that.
	return tx.s.removeTxnDir(tx.dir)
}
