package store

import (
	"fmt"

	"cowblk/cow/imagefile"
	"cowblk/cow/vfs"
)

// checkDevices refuses a head on a device that the system uses, unless it is only read. For the
// base it logs a warning: an open compares what it holds.
func (s *Store) checkDevices(m *Manifest, readOnly bool) error {
	if b := m.Base; b != nil && b.Image == "" {
		if err := vfs.CheckSystemUse(s.fs, b.Path); err != nil {
			s.log.Warn("the system uses the base of the disk, and may change it", "disk", m.Name,
				"err", err)
		}
	}
	if readOnly || m.Head().inStore() { // Preflight has no head, and only reads
		return nil
	}
	p := s.paths(m.Head())
	for _, path := range []string{p.Map, p.Data} {
		if err := Classify(imagefile.CheckSystemUse(s.fs, path, "")); err != nil {
			return fmt.Errorf("disk %q: %w", m.Name, err)
		}
	}
	return nil
}
