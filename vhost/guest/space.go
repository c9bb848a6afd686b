package guest

import (
	"fmt"
	"sync/atomic"
)

// Limits of a Space. A front-end's file may be as large as it likes, holes cost
// nothing; address space does: when a process has none left, its allocator ends
// it, and every disk with it. x86-64 has 128 TiB.
const (
	// MaxBytes of mappings: guests of 8 TiB even while one table replaces
	// another, of 16 TiB where regions come and go one by one.
	MaxBytes = 16 << 40
	// MaxMappings leaves room for the largest table beside the one that it
	// replaces. The kernel allows a process 65,530 (vm.max_map_count).
	MaxMappings = 2*MaxRegions + 6
)

// Space bounds the mappings of one front-end: those of its table, and of former
// tables that requests in flight still hold. The zero value is ready.
type Space struct {
	bytes, mappings atomic.Int64
}

// take accounts for a mapping of n bytes, or says that there is no room.
func (s *Space) take(n int64) error {
	if all := s.bytes.Add(n); all > MaxBytes {
		s.bytes.Add(-n)
		return fmt.Errorf("%d bytes on top of %d that are mapped: at most %d: %w", n, all-n, int64(MaxBytes), ErrRegion)
	}
	if all := s.mappings.Add(1); all > MaxMappings {
		s.give(n)
		return fmt.Errorf("%d regions are mapped or in use by requests, at most %d: %w", all-1, MaxMappings, ErrRegion)
	}
	return nil
}

// give takes take back.
func (s *Space) give(n int64) {
	s.bytes.Add(-n)
	s.mappings.Add(-1)
}

// NewTable is the function of this name, within the space.
func (s *Space) NewTable(regions []RegionDesc, fds []int) (*Table, error) {
	if len(regions) != len(fds) {
		return nil, fmt.Errorf("memory table: %d regions came with %d file descriptors: %w",
			len(regions), len(fds), ErrRegion)
	}
	t := newTable(s, nil)
	for i, r := range regions {
		next, err := t.With(r, fds[i])
		t.Release()
		if err != nil {
			return nil, fmt.Errorf("memory table: region %d: %w", i, err)
		}
		t = next
	}
	return t, nil
}
