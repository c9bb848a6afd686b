package store

import "slices"

// Access is what a process needs of the file system while it has disks open: to promote them, to keep notes about
// them, to open tags. All paths are absolute.
type Access struct {
	Change []string // directories: files and directories are made, written, renamed from one to another, removed
	Write  []string // files and devices that are written
	Read   []string // files, devices and directories that are read
}

// Access says what a process needs that has opened disks of these manifests. Images stay read-only for it. Of what lies
// outside the store it is what these disks lie on: the tags of others may lie on more.
func (s *Store) Access(disks []*Manifest) (Access, error) {
	a := Access{Write: []string{s.path(lockFile)}, Read: []string{s.dir, s.path(imagesDir)}}
	for _, dir := range []string{layersDir, disksDir, tmpDir, indexDir} {
		dir = s.path(dir)
		// It cannot be made later, for the store's own directory is only read.
		err := s.WithReserve(func() error { return s.fs.MkdirAll(dir, dirPerm) })
		if cannotWrite(err) {
			continue // a store that is only read
		}
		if err != nil {
			return Access{}, err
		}
		a.Change = append(a.Change, dir)
	}
	// A later change may fill it. Without it a process does as well until there is no room.
	_ = s.fs.MkdirAll(s.path(reserveDir), dirPerm)
	if there, err := s.exists(s.path(reserveDir)); err == nil && there {
		a.Change = append(a.Change, s.path(reserveDir))
	}
	for _, m := range disks {
		if m.Base != nil && m.Base.Path != "" {
			a.Read = append(a.Read, m.Base.Path)
		}
		// Those that a table has named: opened again to be read when they are sealed, and by a process to which a
		// disk comes back that it has handed over.
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
