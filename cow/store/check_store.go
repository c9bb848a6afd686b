package store

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/uuid"

	"cowblk/cow/layer"
	"cowblk/cow/shell"
)

// staleTxns reports the transactions of dead processes and, in a repair, finishes or undoes them.
// Errors: ErrBusy, the context's.
func (c *checker) staleTxns(storeReport *Report) error {
	c.foreignInTmp(storeReport)
	dirs, err := c.s.txnDirs()
	if err != nil {
		storeReport.addFailure(err)
	}
	if len(dirs) == 0 {
		return nil
	}
	return c.locked(func() error {
		for _, dir := range dirs {
			foreign, err := c.s.foreignInTxn(dir)
			if err != nil {
				storeReport.addFailure(err)
			}
			if foreign != "" {
				storeReport.add("directory in tmp", refused(dir, "content",
					"what cowblk makes, or nothing", shell.Text(foreign),
					"it is not cowblk's, and stays as it is: move it out of the store")).Leftover = true
				continue
			}
			stale, err := c.s.isStale(dir)
			if err != nil {
				storeReport.addFailure(err)
			}
			if !stale {
				continue
			}
			text, err := c.s.describeTxn(dir)
			p := storeReport.add("transaction directory",
				refused(dir, "work of a process that is gone",
					"none", text, ""))
			p.Leftover = true
			if err != nil {
				p.Found, p.Leftover = err.Error(), false
				p.Advice = "the intended change is unknown: compare the tags of the disks, then move the directory out of the store"
				continue
			}
			p.Remedy = "finish or undo it, as the next command that changes the store would"
			c.applyRemedy(storeReport, p, func() error { return c.s.recoverTxn(dir) })
		}
		return nil
	})
}

// foreignInTmp reports what no command has made in tmp/, and what a removal has left there.
func (c *checker) foreignInTmp(storeReport *Report) {
	entries, err := c.s.readDir(c.s.path(tmpDir))
	if err != nil {
		storeReport.addFailure(err)
	}
	for _, e := range entries {
		if isTxnDir(e) {
			continue
		}
		storeReport.add("entry of tmp", refused(c.s.path(tmpDir, e.Name()), "content",
			"what cowblk makes, or nothing", "something else",
			"it is not cowblk's, and stays as it is: move it out of the store")).Leftover = true
	}
}

// locked runs f with the store locked. f changes the store only in a repair.
func (c *checker) locked(f func() error) error {
	if c.o.Repair {
		return c.s.locked(c.ctx, f)
	}
	return c.s.lockedToRead(c.ctx, f)
}

// describeTxn describes the transaction of a dead process. Error: its record is damaged.
func (s *Store) describeTxn(dir string) (string, error) {
	if isRemoval(dir) {
		m, err := s.removedDisk(dir)
		if err != nil {
			return "an interrupted removal", nil
		}
		return fmt.Sprintf("the interrupted removal of disk %s, and those of its %d layers that go with it", m.Name, len(m.Layers)), nil
	}
	ch, err := s.readChange(dir)
	if err != nil {
		return "", fmt.Errorf("a change of several disks whose record is damaged: %w", err)
	}
	if ch != nil {
		var names []string
		for _, m := range ch.To {
			names = append(names, m.Name)
		}
		return "a change of the disks " + strings.Join(names, ", ") +
			" that was decided, and may not have reached all of them", nil
	}
	j, err := s.readJournal(dir)
	if err != nil {
		return "", fmt.Errorf("an interrupted command whose journal is damaged: %w", err)
	}
	if len(j.Layers) > 0 {
		return fmt.Sprintf("an interrupted command, and %d layers that go with it if no disk names them", len(j.Layers)), nil
	}
	return "an interrupted command", nil
}

// orphans reports layers that neither a manifest nor a journal names. A missing reference alone is
// no reason to remove a layer, even an empty one: a manifest may be lost. Only Prune removes it.
func (c *checker) orphans(storeReport *Report) error {
	exists, err := c.s.exists(c.s.path(layersDir))
	if err != nil || !exists {
		if err != nil {
			storeReport.addFailure(err)
		}
		return nil
	}
	return c.locked(func() error {
		v, err := c.s.survey(c.o.Repair)
		if err != nil {
			storeReport.addFailure(err)
			return nil
		}
		c.awayDisks(storeReport, v)
		entries, err := c.s.fs.ReadDir(c.s.path(layersDir))
		if err != nil {
			storeReport.addFailure(err)
			return nil
		}
		damage, transient := v.damagedManifests(nil)
		named, err := c.s.layersInJournals()
		lost := damage != nil || transient != nil || err != nil
		var unnamed []uuid.UUID
		for _, e := range entries {
			id, err := uuid.Parse(e.Name())
			if err != nil || len(v.users(id, "")) > 0 || v.awayUses(id) || named[id] {
				continue
			}
			if exists, err := c.s.exists(c.s.path(layersDir, e.Name())); err != nil || !exists {
				continue
			}
			unnamed = append(unnamed, id)
		}
		c.unnamedLayers(storeReport, unnamed, entries, lost)
		return nil
	})
}

// unnamedLayers reports the layers that no disk names, each after those that lie on it.
func (c *checker) unnamedLayers(storeReport *Report, unnamed []uuid.UUID, entries []fs.DirEntry,
	lost bool) {
	if len(unnamed) == 0 {
		return
	}
	on := map[uuid.UUID]int{}
	parent := map[uuid.UUID]uuid.UUID{}
	for _, e := range entries {
		id, err := uuid.Parse(e.Name())
		if err != nil {
			continue
		}
		if p := c.s.parentOf(id); p != uuid.Nil && p != id {
			parent[id] = p
			on[p]++
		}
	}
	for len(unnamed) > 0 {
		i := max(0, slices.IndexFunc(unnamed, func(id uuid.UUID) bool { return on[id] == 0 }))
		id := unnamed[i]
		unnamed = slices.Delete(unnamed, i, i+1)
		c.orphan(storeReport, id, lost, on[id] > 0)
		if exists, err := c.s.exists(c.s.path(layersDir, id.String())); err == nil && !exists {
			on[parent[id]]--
		}
	}
}

// awayDisks reports disks whose directories were moved away. Their layers are kept. A repair with
// Prune gives them up.
func (c *checker) awayDisks(storeReport *Report, v *survey) {
	for _, e := range slices.Clone(v.away) {
		p := storeReport.add("disk "+e.Name, refused(c.s.path(disksDir, e.Name),
			"directory of a disk that was not removed",
			"one", "none, or that of another disk",
			"put it back: its layers and its image are kept for it; if it is gone for good: see --prune in \"cowblk help check\""))
		p.Leftover = true
		if c.o.Repair && c.o.Prune {
			p.Remedy = "keep nothing for it any more"
			c.applyRemedy(storeReport, p,
				func() error { v.dropAway(e.Name, []uuid.UUID{e.Head}); return nil })
		}
	}
}

// orphan reports a layer that no disk names. Only Prune removes it, even if it is empty: it may be
// the head of a disk that is missing. lost: an unreadable document may name it. covered: a layer
// lies on it that stays. The caller holds the store's lock.
func (c *checker) orphan(storeReport *Report, id uuid.UUID, lost, covered bool) {
	l := storeLayer(id, c.s.now())
	dir := c.s.path(layersDir, id.String())
	found, err := layer.Inspect(c.s.fs, c.s.paths(&l), layer.InspectParams{Map: true})
	if errors.Is(err, layer.ErrInUse) {
		storeReport.addNote("layer %s: no disk names it, but a process uses it", id)
		return
	}
	p := storeReport.add(layerObject(id), refused(dir, "disks that name it", "one at least", "none",
		""))
	p.Leftover = true
	switch {
	case lost:
		p.Advice = "a document of the store cannot be read and may name it: put that right first"
	case c.o.Repair && c.o.Prune && covered:
		p.Advice = "another layer lies on it and stays: see what check says about that one"
	case c.o.Repair && c.o.Prune:
		p.Remedy = "remove it"
		c.applyRemedy(storeReport, p, func() error { return c.s.removeLayer(id) })
	default:
		p.Found += ", and it holds " + c.describeContent(&l, found, err)
		p.Advice = "it may belong to a disk that is missing, and stays; if you know that none is: see --prune in \"cowblk help check\""
	}
}

// removeLayer removes a layer's directory. It moves the directory to tmp/ first, so that an
// interruption leaves no partial layer. The caller holds the store's lock.
func (s *Store) removeLayer(id uuid.UUID) error {
	out := s.path(tmpDir, removalPrefix+uuid.NewString())
	if err := s.fs.MkdirAll(out, dirPerm); err != nil {
		return err
	}
	if err := s.fs.Rename(s.path(layersDir, id.String()),
		filepath.Join(out, id.String())); err != nil {
		return err
	}
	return errors.Join(s.fs.SyncDir(s.path(layersDir)), s.removeTxnDir(out))
}

// describeContent counts the blocks of a layer, with those that a killed process has left
// unflushed.
func (c *checker) describeContent(l *Layer, found *layer.Inspection, err error) string {
	if err != nil || found.Header.UUID == uuid.Nil {
		return "something that cannot be read"
	}
	owned := found.Owned
	if found.Header.State == layer.Head && !found.Header.Clean {
		f, err := layer.Open(c.s.fs, c.s.paths(l), layer.OpenParams{})
		if errors.Is(err, layer.ErrUnflushed) {
			return "unflushed writes that cannot be read"
		}
		if err == nil {
			n, _ := f.Unflushed()
			owned += n
			f.Close()
		}
	}
	return fmt.Sprintf("%d blocks", owned)
}

// layersInJournals returns the layers in the journals and removals of all transactions. The caller
// holds the store's lock.
func (s *Store) layersInJournals() (map[uuid.UUID]bool, error) {
	named := map[uuid.UUID]bool{}
	dirs, err := s.txnDirs()
	for _, dir := range dirs {
		j, jerr := s.readJournal(dir)
		err = errors.Join(err, jerr)
		for _, id := range j.Layers {
			named[id] = true
		}
		if !isRemoval(dir) {
			continue
		}
		if m, merr := s.removedDisk(dir); merr == nil {
			for _, id := range m.uuids() {
				named[id] = true
			}
		}
	}
	return named, err
}

// notDirectories reports the entries with the checked names, or all.
func (c *checker) notDirectories(storeReport *Report) {
	entries, err := c.s.NotDirectories()
	if err != nil {
		return // reported with the directory
	}
	for _, t := range entries {
		if len(c.o.Names) > 0 && !slices.Contains(c.o.Names, t.Name) {
			continue
		}
		storeReport.add(t.Kind+" "+t.Name, refused(t.Path, "entry of "+dirOf(t.Kind)+"/",
			"a directory", t.What, adviceNotDirectory)).Leftover = true
	}
}
