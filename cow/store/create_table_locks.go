package store

import (
	"errors"
	"fmt"
	"os"

	"github.com/google/uuid"

	"cowblk/cow/dmtable"
	"cowblk/cow/layer"
	"cowblk/cow/vfs"
)

// parts returns the files that the table names. maps, if not nil, says which of them are layers.
func tableParts(t *dmtable.Table, maps []tableMap) []*part {
	const owner = "the table"
	size := t.Length * layer.SectorSize
	parts := []*part{{owner: owner, kind: partBase, path: t.Base,
		off: t.BaseOffset * layer.SectorSize, n: size}}
	for i, l := range t.Layers {
		id, head := uuid.Nil, i == len(t.Layers)-1
		if maps != nil && maps[i].header != nil {
			id = maps[i].header.UUID
		}
		parts = append(parts,
			&part{owner: owner, kind: partMap, layer: id, head: head, path: l.Map, n: -1},
			&part{owner: owner, kind: partData, layer: id, head: head, path: l.Data,
				off: l.DataOffset * layer.SectorSize, n: size})
	}
	return parts
}

// lockedFiles are files that are open only for their locks.
type lockedFiles struct {
	files []vfs.File
	locks []*vfs.RangeLock
}

func (h *lockedFiles) close() {
	for _, l := range h.locks {
		_ = l.Close()
	}
	for _, f := range h.files {
		_ = f.Close()
	}
}

// lockTable takes the locks of an open disk on the table's files: a process may have them open in
// another store. Maps that will be formatted are locked when they are.
func (s *Store) lockTable(t *dmtable.Table, maps []tableMap) (_ *lockedFiles, err error) {
	h := new(lockedFiles)
	defer func() {
		if err != nil {
			h.close()
		}
	}()
	size := t.Length * layer.SectorSize
	if err := h.lock(s.fs, t.Base, "base", t.BaseOffset*layer.SectorSize, size, false,
		false); err != nil {
		return nil, err
	}
	for i, l := range t.Layers {
		hd := maps[i].header
		if hd == nil {
			continue
		}
		last := i == len(t.Layers)-1
		err := h.lock(s.fs, l.Map, "map", 0, hd.MapSize(), last, true)
		if err == nil {
			err = h.lock(s.fs, l.Data, "data", l.DataOffset*layer.SectorSize, size, last, false)
		}
		if err != nil {
			return nil, err
		}
	}
	return h, nil
}

// lock locks bytes of a file as an open layer does; whole also takes the flock of a map.
func (h *lockedFiles) lock(fsys vfs.FS, path, what string, off, n int64, exclusive,
	whole bool) error {
	flag := os.O_RDONLY
	if exclusive {
		flag = os.O_RDWR
	}
	f, err := fsys.OpenFile(path, flag, 0)
	if err != nil {
		return fmt.Errorf("%s of the table: %w", what, err)
	}
	h.files = append(h.files, f)
	if whole {
		err = f.Lock(exclusive)
	}
	if err == nil {
		var lock *vfs.RangeLock
		if lock, err = vfs.LockExtents(fsys, f, off, n, exclusive); err == nil {
			h.locks = append(h.locks, lock)
		}
	}
	if errors.Is(err, vfs.ErrLocked) {
		return Classify(layer.InUseElsewhere(path, "use as "+what+" of the table", exclusive))
	}
	return err
}
