package store

import (
	"cowblk/cow/layer"
	"cowblk/cow/vfs"
)

// Unwritten reports whether a disk that nobody has open was not closed in order: what its guest has not flushed is not
// durable. False where that cannot be told.
func (s *Store) Unwritten(name string) bool {
	m, err := s.Disk(name)
	if err != nil || len(m.Layers) == 0 {
		return false
	}
	head := m.Head()
	h, err := layer.ReadHeader(s.fs, s.paths(head).Map)
	if err != nil || h.State != layer.Head || h.Clean {
		return false
	}
	_, open := s.Serving(name) // the next process
	return !open
}

// fullBelow is so little room, in bytes, that there may be none for a page of a map: XFS shows what it keeps for itself.
const fullBelow = 1 << 20

// Full reports whether the store's file system has no room, or next to none, for this user.
func (s *Store) Full() bool {
	host, ok := s.fs.(vfs.RoomFS)
	if !ok {
		return false
	}
	free, err := host.Free(s.dir)
	return err == nil && free < fullBelow
}
