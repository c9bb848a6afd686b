package store

import (
	"slices"

	"github.com/google/uuid"

	"cowblk/cow/vfs"
)

// How a survey updates the index.

// startIndex creates the file of a new index, which shows the file system's time, unless the index
// must not be written.
func (v *survey) startIndex() {
	if !v.mayWrite || v.file != nil {
		return
	}
	if f, at, err := v.s.newIndex(); err == nil {
		v.file, v.fsTime = f, at
	} else {
		v.mayWrite = false
		v.s.log.Debug("the index of manifests cannot be written", "err", err)
	}
}

// save rewrites the index if the survey differs from it. durable: a power cut must not restore the
// old index. Callers may ignore a failure: the index is a cache.
func (v *survey) save(durable bool) (written bool) {
	entries := map[string]*indexEntry{}
	for name, d := range v.disks {
		if d.entry != nil && !(d.err != nil && v.index.entries[name] == nil) {
			entries[name] = d.entry
		}
	}
	away := slices.Clone(v.away)
	for i, e := range away {
		if e.Away {
			continue
		}
		if entries[e.Name] == nil {
			entries[e.Name] = e
			away[i] = nil
		} else {
			other := *e
			other.Away = true
			away[i] = &other
		}
	}
	away = slices.DeleteFunc(away, func(e *indexEntry) bool { return e == nil })
	text := indexText(entries, away)
	if string(text) == string(v.index.text) {
		v.close()
		return true
	}
	v.startIndex()
	defer v.close()
	if v.file == nil || v.s.writeIndex(v.file, text, durable) != nil {
		return false
	}
	_ = v.file.Close() // it was renamed
	v.file, v.index.text = nil, text
	return true
}

func (v *survey) close() {
	if v.file == nil {
		return
	}
	_ = v.file.Close()
	v.file = nil
	path := v.s.path(indexDir, indexFile) + vfs.TempSuffix
	_ = v.s.fs.Remove(path)
}

// dropDisk removes a disk that this program has removed from the index, before its layers are
// deleted.
func (v *survey) dropDisk(name string) {
	delete(v.disks, name)
	v.named = nil
	if v.save(true) {
		return
	}
	if err := v.s.voidLines(name); err != nil {
		v.s.log.Debug("the index of manifests cannot be written", "err", err)
	}
}

// dropAway removes a disk that was moved away from the index if its head is one of layers: an
// interrupted command has removed the disk or replaced its manifest, or the user gave the disk up.
func (v *survey) dropAway(name string, layers []uuid.UUID) {
	n := len(v.away)
	v.away = slices.DeleteFunc(v.away, func(e *indexEntry) bool {
		return e.Name == name && slices.Contains(layers, e.Head)
	})
	if len(v.away) < n && !v.save(true) && v.disks[name] == nil {
		_ = v.s.voidLines(name)
	}
}

// isAway reports whether a disk of an interrupted command was moved away, and records in the index
// that the disk may name the layers too. No disks: any.
func (v *survey) isAway(disks []string, layers []uuid.UUID) bool {
	away := false
	for i, e := range v.away {
		if v.disks[e.Name] != nil || len(disks) > 0 && !slices.Contains(disks, e.Name) {
			continue
		}
		away = true
		more := *e
		more.Layers = slices.Clone(e.Layers)
		for _, id := range layers {
			if !more.names(id) && len(v.users(id, "")) == 0 {
				more.Layers = append(more.Layers, id)
			}
		}
		v.away[i] = &more
	}
	if away {
		v.save(false)
	}
	return away
}

// replace updates the survey and the index with a manifest that was just written.
func (v *survey) replace(m *Manifest) {
	if d := v.disks[m.Name]; d != nil {
		e := entryOf(m.Name, m)
		e.Directory = d.entry.Directory
		d.entry, v.named = e, nil
		v.save(true)
	}
}
