package store

import (
	"context"
	"errors"
	"fmt"

	"cowblk/cow"
	"cowblk/cow/layer"
)

// Preflight opens and closes the layers below the head of a disk that another process may be
// serving, with the checks of OpenDisk. It does not open the head and takes no lock, so OpenDisk
// may still fail. It finds errors of base, images, sealed layers and manifest early, and leaves
// what it read in the page cache.
func (s *Store) Preflight(ctx context.Context, name string, o cow.Options) error {
	m, err := s.Disk(name)
	if err != nil {
		return err
	}
	if err := s.trustedFiles(m); err != nil {
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
			return fmt.Errorf("disk %q: %w", name, Classify(err))
		}
		m.Size = h.Size // the disk may have grown since
	}
	disk, err := s.openStack(ctx, m, OpenOptions{Cow: o, ReadOnly: true})
	if errors.Is(err, layer.ErrInUse) {
		return nil // another process is still sealing a former head
	}
	if err != nil {
		return err
	}
	return disk.Close()
}
