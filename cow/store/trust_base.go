package store

import (
	"context"

	"cowblk/cow/finding"
)

// TrustBase records the current state of a base in place after a check of its sampled fingerprint.
// It hashes an image whose modification time has changed. ErrRefused: the content differs.
func (s *Store) TrustBase(ctx context.Context, name string) (*Manifest, error) {
	lock, err := s.LockDisk(name)
	if err != nil {
		return nil, err
	}
	defer lock.Unlock()
	if err := s.recoverFor(ctx, name); err != nil {
		return nil, err
	}
	m, err := s.Disk(name)
	if err != nil {
		return nil, err
	}
	if m.Base == nil {
		return nil, finding.Invalidf("disk %q has no base: there is nothing to trust", name)
	}
	if m.Base.Image != "" {
		return m, s.checkImage(ctx, m)
	}
	f, now, err := s.openBase(m, m.Base.Path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := checkFingerprint(f, m); err != nil {
		return nil, err
	}
	m.Base.Identity = &now
	return m, s.WithReserve(func() error { // until then the disk cannot be served
		return s.locked(ctx, func() error {
			return s.writeDocument(s.path(disksDir, name, diskFile), m)
		})
	})
}
