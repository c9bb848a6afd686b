package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/uuid"

	"cowblk/cow/vfs"
)

// unfinishedError is the error of a change that may not be durable, or that may have reached only
// some of its disks.
type unfinishedError struct {
	disks []string // of the change; nil: any
	err   error
}

func (e *unfinishedError) Error() string {
	return fmt.Sprintf("an interrupted change cannot be finished: %v", e.err)
}

func (e *unfinishedError) Unwrap() error { return e.err }

// concerns reports whether the disk may be in an invalid state.
func (e *unfinishedError) concerns(disk string) bool {
	return e.disks == nil || slices.Contains(e.disks, disk)
}

// recoverFor recovers stale transactions before a disk's manifest is used. Error: a change of this
// disk could not be finished.
func (s *Store) recoverFor(ctx context.Context, disk string) error {
	return s.recoverKeeping(ctx, disk, reserveForClose)
}

// recoverKeeping is recoverFor that leaves keep files of the reserve.
func (s *Store) recoverKeeping(ctx context.Context, disk string, keep int) error {
	names, err := s.fs.SomeNames(s.path(tmpDir), 1)
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(names) == 0 {
		return nil
	}
	if err != nil {
		return err
	}
	err = s.withReserve(keep, func() error {
		return s.locked(ctx, func() (err error) {
			return s.recoverStaleTxns(disk)
		})
	})
	if cannotWrite(err) {
		return s.refuseUnfinished(disk)
	}
	return err
}

// recoverStaleTxns finishes or undoes the transactions of dead processes. It returns the errors
// that make the disk unusable, and logs the others. Without a disk it logs all. The caller holds
// the store's lock.
func (s *Store) recoverStaleTxns(disk string) (unusable error) {
	dirs, err := s.txnDirs()
	if err != nil {
		return nil // the operation itself will get the same error
	}
	for _, dir := range dirs {
		if err := s.recoverTxn(dir); err != nil {
			var u *unfinishedError
			if disk != "" && errors.As(err, &u) && u.concerns(disk) {
				unusable = errors.Join(unusable, u)
				continue
			}
			s.log.Warn("cannot clean up after an interrupted command", "directory", dir, "err", err)
		}
	}
	return unusable
}

// txnDirs returns the paths of the transactions in tmp/.
func (s *Store) txnDirs() (dirs []string, err error) {
	entries, err := s.readDir(s.path(tmpDir))
	for _, e := range entries {
		if isTxnDir(e) {
			dirs = append(dirs, s.path(tmpDir, e.Name()))
		}
	}
	return dirs, err
}

// isTxnDir reports whether an entry of tmp/ has the name of a transaction. Other entries are not
// cowblk's. foreignInTxn checks the content.
func isTxnDir(e fs.DirEntry) bool {
	return isUUID(strings.TrimPrefix(e.Name(), removalPrefix)) && e.IsDir()
}

func (s *Store) recoverTxn(dir string) error {
	if foreign, err := s.foreignInTxn(dir); err != nil || foreign != "" {
		if foreign != "" {
			s.log.Debug("a directory in the store's tmp is left alone: it is not cowblk's",
				"directory", dir, "found", foreign)
		}
		return err
	}
	f, stale, err := s.lockStaleTxn(dir)
	if err != nil || !stale {
		return err
	}
	if f != nil {
		defer f.Close()
	}
	s.log.Info("cleaning up after an interrupted command", "directory", dir)
	if isRemoval(dir) {
		return s.finishRemoval(dir)
	}
	c, err := s.readChange(dir)
	if err != nil {
		return &unfinishedError{err: err}
	}
	j, jerr := s.readJournal(dir)
	if jerr != nil && !isDamage(jerr) {
		return jerr
	}
	if err := s.syncDirectories(dir, s.changedDisks(j, jerr, c)); err != nil {
		return &unfinishedError{disks: c.disks(), err: err}
	}
	if err := s.rollForward(dir, c); err != nil {
		return err
	}
	if jerr != nil {
		s.log.Warn("the journal of an interrupted command cannot be read: the layers that it lists are kept, cowblk check shows those that no disk needs", "err", jerr)
	}
	return s.discardTxn(dir, j)
}

// lockStaleTxn takes the lock of a transaction if its process is dead. f is nil if the lock file is
// missing: begin creates directory and lock file under the store's lock, which the caller holds, so
// the process is dead, or has left only garbage.
func (s *Store) lockStaleTxn(dir string) (f vfs.File, stale bool, err error) {
	f, err = s.fs.OpenFile(filepath.Join(dir, lockFile), os.O_RDONLY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		exists, err := s.exists(dir)
		return nil, exists, err
	}
	if err != nil {
		return nil, false, err
	}
	if err = f.Lock(true); err == nil {
		return f, true, nil
	}
	f.Close()
	if errors.Is(err, vfs.ErrLocked) {
		err = nil
	}
	return nil, false, err
}

// isStale reports whether the process of a transaction is dead.
func (s *Store) isStale(dir string) (bool, error) {
	f, stale, err := s.lockStaleTxn(dir)
	if f != nil {
		f.Close()
	}
	return stale, err
}

// changedDisks returns the disks whose manifests a dead process may have replaced.
func (s *Store) changedDisks(j journal, unread error, c *change) []string {
	names := slices.Clone(j.Disks)
	if len(names) == 0 && (len(j.Layers) > 0 || unread != nil) {
		names, _ = s.names(disksDir)
	}
	return append(names, c.disks()...)
}

// syncDirectories makes the renames of a dead process durable: of images, layers, disks and
// manifests, and in its own directory. Other processes use the result, so a power cut must not undo
// it. The caller holds the store's lock.
func (s *Store) syncDirectories(txnDir string, disks []string) error {
	dirs := []string{txnDir, s.dir, s.path(imagesDir), s.path(layersDir), s.path(disksDir)}
	for _, name := range disks {
		dirs = append(dirs, s.path(disksDir, name))
	}
	for _, dir := range dirs {
		if err := s.fs.SyncDir(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// discardTxn removes the layers of j that nobody needs, then dir. If the need is unknown the layers
// stay, so that not every command looks again, and Check lists them. The caller holds the store's
// lock.
func (s *Store) discardTxn(dir string, j journal) error {
	existing, err := s.existingLayers(j.Layers)
	if err != nil {
		return err
	}
	if len(existing) > 0 {
		v, err := s.survey(true)
		if err != nil {
			return err
		}
		damage, transient := v.damagedManifests(j.Disks)
		switch {
		case transient != nil:
			return transient // temporary: the next command tries again
		case damage != nil:
			s.log.Warn("layers of an interrupted command are kept: an unreadable disk may need them",
				"layers", joinIDs(existing), "err", damage)
		case v.isAway(j.Disks, existing):
			s.log.Warn("layers of an interrupted command are kept: the directory of its disk was moved away without rm", "layers", joinIDs(existing))
		case v.mayBeMovedAway(dir, j, existing):
			s.log.Warn("layers of an interrupted command are kept: its disk is missing, and may have been moved away", "layers", joinIDs(existing))
		default:
			for _, name := range j.Disks {
				if v.disks[name] != nil {
					v.dropAway(name, j.Layers) // its manifest was replaced, as by a rollback
				}
			}
			if err := v.release(existing, dir); err != nil {
				return err
			}
		}
	}
	return s.removeStaleTxn(dir)
}

// joinIDs returns the UUIDs of layers as a text for the log.
func joinIDs(ids []uuid.UUID) string {
	texts := make([]string, 0, len(ids))
	for _, id := range ids {
		texts = append(texts, id.String())
	}
	return strings.Join(texts, ", ")
}

// mayBeMovedAway reports whether a disk for which a dead process made one of the layers in layers/
// may have been there and been moved away since. A disk that was being created and is still in the
// transaction was not.
//
// The journals of earlier versions name no disks: then a layer is the new head of a promotion that
// did not come to its end if it lies on the head of a disk that is there.
func (v *survey) mayBeMovedAway(txnDir string, j journal, existing []uuid.UUID) bool {
	if staged, err := v.s.exists(filepath.Join(txnDir, "disk")); err == nil && staged {
		return false
	}
	if len(j.Disks) > 0 {
		return slices.ContainsFunc(j.Disks, func(name string) bool { return v.disks[name] == nil })
	}
	return slices.ContainsFunc(existing, func(id uuid.UUID) bool {
		return len(v.users(id, "")) == 0 && !v.isHead(v.s.parentOf(id))
	})
}

// isHead reports whether a layer is the head of a readable disk.
func (v *survey) isHead(id uuid.UUID) bool {
	for _, d := range v.disks {
		if d.err == nil && d.entry.Head == id && id != uuid.Nil {
			return true
		}
	}
	return false
}

// removeStaleTxn is removeTxnDir for a dead process or a failed operation. It keeps layers that a
// manifest names again.
func (s *Store) removeStaleTxn(dir string) error {
	if err := s.restoreLayers(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return s.removeTxnDir(dir)
}

func (s *Store) existingLayers(layers []uuid.UUID) (existing []uuid.UUID, err error) {
	for _, id := range layers {
		ok, err := s.exists(s.path(layersDir, id.String()))
		if err != nil {
			return nil, err
		}
		if ok {
			existing = append(existing, id)
		}
	}
	return existing, nil
}

// removalPrefix starts the name of a removed disk's directory in tmp/. The next command that
// changes the store removes its layers. Earlier versions remove the directory and leave the layers.
const removalPrefix = "rm-"

func isRemoval(dir string) bool { return strings.HasPrefix(filepath.Base(dir), removalPrefix) }

// finishRemoval finishes the removal of a disk by a dead process. The caller holds the store's
// lock.
func (s *Store) finishRemoval(dir string) error {
	// The removal must be durable before the layers are removed.
	if err := s.syncDirectories(dir, nil); err != nil {
		return err
	}
	m, err := s.removedDisk(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil && !isDamage(err):
		return err
	case err != nil:
		s.log.Warn("the manifest of a removed disk cannot be read: its layers are kept, cowblk check shows those that no disk needs", "err", err)
	default:
		v, err := s.survey(true)
		if err != nil {
			return err
		}
		v.dropAway(m.Name, m.uuids()) // the index may be older than the last promotion
		if err := v.releaseAbove(m, 0, dir, ""); err != nil {
			return err
		}
	}
	return s.removeStaleTxn(dir)
}

// removedDisk reads the manifest in the directory of a removed disk.
func (s *Store) removedDisk(dir string) (*Manifest, error) {
	m := new(Manifest)
	return m, s.readDocument(filepath.Join(dir, diskFile), m,
		func() error { return m.check(m.Name) })
}
