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

// journal lists the layers outside the transaction's directory that it has moved to their place or
// will leave without a user. If the process dies, recovery removes those that nobody needs.
type journal struct {
	Layers []uuid.UUID `json:"layers"`
	// Disks are the disks whose manifests were to name the layers. Absent in journals of earlier
	// versions.
	Disks []string `json:"disks,omitempty"`
}

// txn is the transaction of one operation: a directory under tmp/. Its flock shows that the process
// is alive.
type txn struct {
	s       *Store
	dir     string
	lock    vfs.File
	journal journal
	// committed: manifests durably name the layers of the journal.
	committed bool
	// unresolved: leave the directory to the next command. The state on disk may not be durable.
	unresolved bool
}

// begin creates a transaction. It recovers stale ones first. The caller must close it.
func (s *Store) begin(ctx context.Context) (*txn, error) {
	tx := &txn{s: s, dir: s.path(tmpDir, uuid.NewString())}
	err := s.locked(ctx, func() error {
		// errors are logged, and concern the commands that open those disks
		_ = s.recoverStaleTxns("")
		if err := s.fs.MkdirAll(s.path(tmpDir), dirPerm); err != nil {
			return err
		}
		if err := s.fs.Mkdir(tx.dir, dirPerm); err != nil {
			return err
		}
		// Lock it before the store's lock is released: nobody finds it free while its owner lives.
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
	// The journal must not be lost with the name of its directory.
	if err := s.fs.SyncDir(s.path(tmpDir)); err != nil {
		tx.close()
		return nil, err
	}
	return tx, nil
}

// renameDurably renames from to to, one of which is in the store's directory dir. If that cannot be
// made durable it undoes the rename. unresolved: the undo is not durable either. Then a power cut
// may leave either state, and the layers of both must stay.
func (s *Store) renameDurably(from, to, dir string) (unresolved bool, err error) {
	if err := s.fs.Rename(from, to); err != nil {
		return false, err
	}
	if err = s.fs.SyncDir(s.path(dir)); err == nil {
		return false, nil
	}
	undone := s.fs.Rename(to, from)
	if undone == nil {
		undone = s.fs.SyncDir(s.path(dir))
	}
	return undone != nil, errors.Join(err, undone)
}

func (tx *txn) path(elem ...string) string {
	return filepath.Join(append([]string{tx.dir}, elem...)...)
}

// journalLayers durably records layers that only the disk's manifest may name, or that lie below
// those, from the highest down.
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

// close removes the transaction and, unless it was committed, the layers of the journal that nobody
// needs. It logs its errors: the operation itself is finished or undone, and the next command tries
// again.
func (tx *txn) close() {
	defer tx.lock.Close()
	if tx.unresolved {
		return
	}
	// Without the operation's context: an interrupted operation must clean up too.
	err := tx.cleanUp()
	if err != nil {
		tx.s.log.Warn("cannot clean up, the next command will try again", "directory", tx.dir,
			"err", err)
	}
}

func (tx *txn) cleanUp() error {
	if len(tx.journal.Layers) == 0 {
		return tx.s.removeTxnDir(tx.dir)
	}
	// Take the store's lock even if no layer is removed: a check that has read a manifest before
	// the change must still find the new layer in the journal.
	err := tx.s.locked(context.Background(), func() error {
		if !tx.committed {
			return tx.s.discardTxn(tx.dir, tx.journal)
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
	// The rest is garbage, locked or not, and needs no store lock.
	return tx.s.removeTxnDir(tx.dir)
}

// writeFile durably writes a file in the transaction. Its name is durable after the next sync of
// the directory.
func (tx *txn) writeFile(name string, data []byte, perm os.FileMode) error {
	f, err := tx.s.fs.OpenFile(tx.path(name), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, perm)
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

// readJournal reads the journal of a transaction; a missing journal is empty.
func (s *Store) readJournal(dir string) (j journal, err error) {
	if _, err := s.readJSON(filepath.Join(dir, journalFile), &j); err != nil {
		return journal{}, err
	}
	return j, nil
}
