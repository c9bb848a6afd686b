package store

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/google/uuid"

	"cowblk/cow/dmtable"
	"cowblk/cow/finding"
	"cowblk/cow/imagefile"
	"cowblk/cow/layer"
)

// tableMap describes one map of a table.
type tableMap struct {
	paths  layer.Paths
	format bool          // not a layer yet: format it
	header *layer.Header // nil: format
}

// createFromTable creates a disk of the files and devices that a table names. They stay in place,
// and removing the disk keeps them. All files are checked before any is formatted.
func (s *Store) createFromTable(ctx context.Context, name string, o CreateOptions) (*Manifest,
	error) {
	t, err := dmtable.Parse(o.Table)
	if err != nil {
		return nil, err
	}
	if err := t.Absolute(); err != nil {
		return nil, err
	}
	m := &Manifest{Version: formatVersion, Name: name, Size: t.Length * layer.SectorSize,
		TableStart: t.Start, Created: s.now().UTC()}
	parts := tableParts(t, nil)
	check := newFileChecker()
	defer check.Close()
	for _, p := range parts {
		if err := s.refuseStoreFile(string(p.kind)+" of the table", p.path); err != nil {
			return nil, err
		}
		if p.kind == partBase {
			continue
		}
		if err := s.trustedFile(check, string(p.kind)+" of the table", p.path); err != nil {
			return nil, err
		}
		if err := Classify(imagefile.CheckSystemUse(s.fs, p.path, "")); err != nil {
			return nil, err
		}
	}
	if err := s.refuseOverlap(parts); err != nil {
		return nil, err
	}
	if m.Base, err = s.tableBase(t, o.Force, o.ForceShare); err != nil {
		return nil, err
	}
	maps, err := s.inspectMaps(t, m, o)
	if err != nil {
		return nil, err
	}
	tx, err := s.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer tx.close()
	err = s.locked(ctx, func() error {
		if err := s.checkFree(name); err != nil {
			return err
		}
		if err := s.refuseUsed(tableParts(t, maps), false); err != nil {
			return err
		}
		for _, tm := range maps {
			if !tm.format || o.Force {
				continue
			}
			if err := imagefile.CheckUnused(s.fs, tm.paths.Data, tm.paths.DataOffset,
				m.Size); err != nil {
				return err
			}
		}
		locked, err := s.lockTable(t, maps)
		if err != nil {
			return err
		}
		defer locked.close()
		for i := range maps {
			if err := s.addTableLayer(m, &maps[i], i == len(maps)-1, o.Force); err != nil {
				return err
			}
		}
		if err := tx.stageDisk(m); err != nil {
			return err
		}
		return tx.moveInDisk(m)
	})
	if err != nil {
		return nil, err
	}
	return m, nil
}

func (s *Store) tableBase(t *dmtable.Table, force, share bool) (*Base, error) {
	f, err := openBaseFile(s.fs, t.Base, share)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if !force {
		if err := imagefile.CheckBase(s.fs, f, t.Base); err != nil {
			return nil, err
		}
	}
	size, err := f.Size()
	if err != nil {
		return nil, err
	}
	if need := (t.BaseOffset + t.Length) * layer.SectorSize; size < need {
		return nil, refused(t.Base, "size of the base",
			"at least "+finding.Bytes(need)+" (BASE_OFFSET + LENGTH)", finding.Bytes(size),
			"correct the table")
	}
	return baseOf(f, t.Base, t.BaseOffset*layer.SectorSize, t.Length*layer.SectorSize)
}

// inspectMaps reads every map and checks that the disk can be made of them. It changes nothing. It
// sets the disk's block size to that of the existing layers.
func (s *Store) inspectMaps(t *dmtable.Table, m *Manifest, o CreateOptions) ([]tableMap, error) {
	maps := make([]tableMap, len(t.Layers))
	m.BlockSize = o.BlockSize
	for i, l := range t.Layers {
		maps[i].paths = layer.Paths{Map: l.Map, Data: l.Data,
			DataOffset: l.DataOffset * layer.SectorSize}
		h, err := layer.ReadHeader(s.fs, l.Map)
		switch {
		case err == nil:
			maps[i].header = &h
			if m.BlockSize == 0 {
				m.BlockSize = int(h.BlockSize)
			}
		case errors.Is(err, layer.ErrNotLayer) || o.Force && !errors.Is(err, os.ErrPermission):
			maps[i].format = true
		default:
			return nil, Classify(err)
		}
	}
	if m.BlockSize == 0 {
		m.BlockSize = layer.DefaultBlockSize
	}
	parent := uuid.Nil
	for i := range maps {
		if err := s.checkMap(m, &maps[i], parent, i == len(maps)-1, o.Force); err != nil {
			return nil, err
		}
		parent = uuid.Nil
		if h := maps[i].header; h != nil {
			parent = h.UUID
		}
	}
	return maps, nil
}

// checkMap checks that a map can be used as it is or formatted. With force it marks a map that does
// not fit for formatting.
func (s *Store) checkMap(m *Manifest, tm *tableMap, parent uuid.UUID, last, force bool) error {
	path := tm.paths.Map
	var err error
	switch h := tm.header; {
	case h == nil && force:
		return nil
	case h == nil:
		blank := layer.Header{Size: m.Size, BlockSize: uint32(m.BlockSize)}
		return s.checkZero(path, blank.MapSize())
	case h.Parent != parent:
		err = refused(path, "parent of the layer", layerText(parent), layerText(h.Parent),
			"name the layers oldest first, as they were made")
	case h.Size != m.Size:
		err = refused(path, "size of the layer's disk", finding.Bytes(m.Size),
			finding.Bytes(h.Size),
			"correct LENGTH")
	case int(h.BlockSize) != m.BlockSize:
		err = refused(path, "block size of the layer", finding.Bytes(int64(m.BlockSize)),
			finding.Bytes(int64(h.BlockSize)), "leave --block-size out")
	case h.Base != m.Base.Fingerprint:
		err = refused(path, "fingerprint of the layer's base", m.Base.Fingerprint.String(),
			h.Base.String(), "name the base and the offset that the layer was made on")
	case h.BaseSize != m.Base.Size:
		err = refused(path, "bytes of the base that belong to the layer",
			finding.Bytes(m.Base.Size),
			finding.Bytes(h.BaseSize), "correct LENGTH")
	case h.DataOffset != tm.paths.DataOffset:
		err = refused(path, "offset of the layer's data", finding.Bytes(h.DataOffset),
			finding.Bytes(tm.paths.DataOffset), "correct DATA_OFFSET")
	case last && h.State == layer.Sealed:
		err = refused(path, "state of the last layer", "a head", "a sealed layer",
			"add a new map and data for a head on top of it")
	default:
		return nil
	}
	if force {
		tm.header, tm.format = nil, true
		return nil
	}
	return err
}

func layerText(id uuid.UUID) string {
	if id == uuid.Nil {
		return "none"
	}
	return "layer " + id.String()
}

// checkZero refuses a map with nonzero bytes in its first size bytes.
func (s *Store) checkZero(path string, size int64) error {
	f, err := s.fs.OpenFile(path, os.O_RDONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	at, err := layer.FirstNonZero(f, size)
	if err == nil && at >= 0 {
		err = refused(path, "content of the map", "zeros, or a layer",
			fmt.Sprintf("something else at offset %d", at),
			"name another map: one of zeros, or one that holds this layer; this one is left as it is")
	}
	return err
}

// addTableLayer adds a map and its data to the manifest. It formats them if tm.format is set. The
// caller holds the store's lock.
func (s *Store) addTableLayer(m *Manifest, tm *tableMap, last, force bool) error {
	if tm.format {
		p := layer.CreateParams{
			Size: m.Size, BlockSize: uint32(m.BlockSize), Created: s.now().UTC(),
			Base: m.Base.Fingerprint, BaseSize: m.Base.Size,
		}
		if len(m.Layers) > 0 {
			p.Parent = m.Head().UUID
		}
		l, err := layer.FormatIfZero(s.fs, tm.paths, p, force)
		if err != nil {
			return Classify(err)
		}
		if !last {
			err = l.Seal(s.now())
		}
		h := l.Header()
		tm.header = &h
		if err := errors.Join(err, l.Close()); err != nil {
			return fmt.Errorf("format %s: %w", tm.paths.Map, err)
		}
	}
	entry := Layer{UUID: tm.header.UUID, Map: tm.paths.Map, Data: tm.paths.Data,
		DataOffset: tm.paths.DataOffset, Created: tm.header.Created}
	if !last && !tm.header.SealedAt.IsZero() { // a head has no seal time
		sealed := tm.header.SealedAt
		entry.Sealed = &sealed
	}
	m.Layers = append(m.Layers, entry)
	return nil
}
