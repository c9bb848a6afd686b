package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/google/uuid"

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
func (s *Store) createFromTable(ctx context.Context, name string, o CreateOptions) (*Manifest, error) {
	t, err := ParseTable(o.Table)
	if err != nil {
		return nil, err
	}
	if err := t.absolute(); err != nil {
		return nil, err
	}
	m := &Manifest{Version: formatVersion, Name: name, Size: t.Length * SectorSize, TableStart: t.Start, Created: s.now().UTC()}
	parts := t.parts(nil)
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
		if err := refuseSystemUse(s.fs, p.path, ""); err != nil {
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
		if err := s.refuseUsed(t.parts(maps), false); err != nil {
			return err
		}
		for _, tm := range maps {
			if !tm.format || o.Force {
				continue
			}
			if err := checkUnused(s.fs, tm.paths.Data, tm.paths.DataOffset, m.Size); err != nil {
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
		return tx.installDisk(m)
	})
	if err != nil {
		return nil, err
	}
	return m, nil
}

func (t *Table) absolute() error {
	paths := []*string{&t.Base}
	for i := range t.Layers {
		paths = append(paths, &t.Layers[i].Map, &t.Layers[i].Data)
	}
	for _, p := range paths {
		abs, err := filepath.Abs(*p)
		if err != nil {
			return err
		}
		if err := checkPathText("path of the table", abs); err != nil {
			return err
		}
		*p = abs
	}
	return t.check() // two spellings of one path are equal now
}

func (s *Store) tableBase(t *Table, force, share bool) (*Base, error) {
	f, err := openBaseFile(s.fs, t.Base, share)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := rawBase(s.fs, f, t.Base, force); err != nil {
		return nil, err
	}
	size, err := f.Size()
	if err != nil {
		return nil, err
	}
	if need := (t.BaseOffset + t.Length) * SectorSize; size < need {
		return nil, &Mismatch{File: t.Base, What: "size of the base", Expected: "at least " + quoteBytes(need) + " (BASE_OFFSET + LENGTH)", Found: quoteBytes(size),
			Advice: "correct the table"}
	}
	return baseOf(f, t.Base, t.BaseOffset*SectorSize, t.Length*SectorSize)
}

// inspectMaps reads every map and checks that the disk can be made of them. It changes nothing. It
// sets the disk's block size to that of the existing layers.
func (s *Store) inspectMaps(t *Table, m *Manifest, o CreateOptions) ([]tableMap, error) {
	maps := make([]tableMap, len(t.Layers))
	m.BlockSize = o.BlockSize
	for i, l := range t.Layers {
		maps[i].paths = layer.Paths{Map: l.Map, Data: l.Data, DataOffset: l.DataOffset * SectorSize}
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
			return nil, classify(err)
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
		err = &Mismatch{File: path, What: "parent of the layer", Expected: layerText(parent), Found: layerText(h.Parent), Advice: "name the layers oldest first, as they were made"}
	case h.Size != m.Size:
		err = &Mismatch{File: path, What: "size of the layer's disk", Expected: quoteBytes(m.Size), Found: quoteBytes(h.Size), Advice: "correct LENGTH"}
	case int(h.BlockSize) != m.BlockSize:
		err = &Mismatch{File: path, What: "block size of the layer", Expected: quoteBytes(int64(m.BlockSize)), Found: quoteBytes(int64(h.BlockSize)), Advice: "leave --block-size out"}
	case h.Base != m.Base.Fingerprint:
		err = &Mismatch{File: path, What: "fingerprint of the layer's base", Expected: m.Base.Fingerprint.String(), Found: h.Base.String(), Advice: "name the base and the offset that the layer was made on"}
	case h.BaseSize != m.Base.Size:
		err = &Mismatch{File: path, What: "bytes of the base that belong to the layer", Expected: quoteBytes(m.Base.Size), Found: quoteBytes(h.BaseSize), Advice: "correct LENGTH"}
	case h.DataOffset != tm.paths.DataOffset:
		err = &Mismatch{File: path, What: "offset of the layer's data", Expected: quoteBytes(h.DataOffset), Found: quoteBytes(tm.paths.DataOffset), Advice: "correct DATA_OFFSET"}
	case last && h.State == layer.Sealed:
		err = &Mismatch{File: path, What: "state of the last layer", Expected: "a head", Found: "a sealed layer", Advice: "add a new map and data for a head on top of it"}
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
	length, err := f.Size()
	if err != nil {
		return err
	}
	size = min(size, length)
	buf := make([]byte, chunkSize)
	for off := int64(0); off < size; {
		start, end, err := f.NextData(off)
		if errors.Is(err, io.EOF) || err == nil && start >= size {
			return nil
		}
		if err != nil {
			return err
		}
		for off = start; off < min(end, size); {
			p := buf[:min(min(end, size)-off, chunkSize)]
			if _, err := f.ReadAt(p, off); err != nil {
				return err
			}
			for i, b := range p {
				if b != 0 {
					return &Mismatch{File: path, What: "content of the map", Expected: "zeros, or a layer", Found: fmt.Sprintf("something else at offset %d", off+int64(i)),
						Advice: "name another map: one of zeros, or one that holds this layer; this one is left as it is"}
				}
			}
			off += int64(len(p))
		}
	}
	return nil
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
			return classify(err)
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
	entry := Layer{UUID: tm.header.UUID, Map: tm.paths.Map, Data: tm.paths.Data, DataOffset: tm.paths.DataOffset, Created: tm.header.Created}
	if !last && !tm.header.SealedAt.IsZero() { // a head has no seal time
		sealed := tm.header.SealedAt
		entry.Sealed = &sealed
	}
	m.Layers = append(m.Layers, entry)
	return nil
}
