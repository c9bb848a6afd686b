package store

import (
	"context"
	"errors"
	"fmt"

	"cowblk/cow"
	"cowblk/cow/layer"
)

// Preflight opens and closes what lies below the head of a disk that another process may be serving, with all checks
// that OpenDisk makes. It does not touch the head, and takes no lock: OpenDisk may still fail, but what is wrong with
// base, images, sealed layers and manifest comes out here, and what it reads from them is in memory then.
func (s *Store) Preflight(ctx context.Context, name string, o cow.Options) error {
	m, err := s.Disk(name)
	if err != nil {
		return err
	}
	m.Layers = m.Layers[:len(m.Layers)-1]
	if len(m.Layers) == 0 {
		if m.Base == nil {
			return nil
		}
		_, err := s.baseSpec(ctx, m)
		if err != nil {
			return fmt.Errorf("disk %q: %w", name, err)
		}
	} else {
		h, err := layer.ReadHeader(s.fs, s.paths(m.Head()).Map)
		if err != nil {
			return fmt.Errorf("disk %q: %w", name, classify(err))
		}
		m.Size = h.Size // the disk may have grown since
	}
	disk, err := s.openStack(ctx, m, OpenOptions{Cow: o, ReadOnly: true})
	if errors.Is(err, layer.ErrInUse) {
		return nil // a former head that is still being sealed: the process that does it has it open
	}
	if err != nil {
		return err
	}
	return disk.Close()
}
