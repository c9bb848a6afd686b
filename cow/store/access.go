package store

import "slices"

// Access lists the paths that a process needs while it has disks open: to promote them, to write
// their quiesce records and to open tags. All paths are absolute.
type Access struct {
	Change []string // directories in which entries are created, written, renamed and removed
	Write  []string // files and devices to write
	Read   []string // files, devices and directories to read
}

// Access returns the paths that a process needs which has opened these disks. Images are read-only.
// Outside the store it lists only the files under these disks; the tags of other disks may need
// more.
func (s *Store) Access(disks []*Manifest) (Access, error) {
	a := Access{Write: []string{s.path(lockFile)}, Read: []string{s.dir, s.path(imagesDir)}}
	for _, dir := range []string{layersDir, disksDir, tmpDir, indexDir} {
		dir = s.path(dir)
		// It cannot be created later: a confined process only reads the store's own directory.
		err := s.WithReserve(func() error { return s.fs.MkdirAll(dir, dirPerm) })
		if cannotWrite(err) {
			continue // a read-only store
		}
		if err != nil {
			return Access{}, err
		}
		a.Change = append(a.Change, dir)
	}
	// Later changes may fill the reserve. A process works without it until the file system is full.
	_ = s.fs.MkdirAll(s.path(reserveDir), dirPerm)
	if exists, err := s.exists(s.path(reserveDir)); err == nil && exists {
		a.Change = append(a.Change, s.path(reserveDir))
	}
	for _, m := range disks {
		if m.Base != nil && m.Base.Path != "" {
			a.Read = append(a.Read, m.Base.Path)
		}
		// The files of a table. Sealed layers are opened again for reading when they are sealed,
		// and by a process that takes a disk back after a failed takeover.
		for i, l := range m.Layers {
			if l.inStore() {
				continue
			}
			if i == len(m.Layers)-1 {
				a.Write = append(a.Write, l.Map, l.Data)
			} else {
				a.Read = append(a.Read, l.Map, l.Data)
			}
		}
	}
	slices.Sort(a.Read)
	a.Read = slices.Compact(a.Read)
	return a, nil
}
