package guest

import (
	"fmt"
	"sync/atomic"
)

// Limits of a Space. A front-end's file may be of any size because holes cost nothing, but address
// space is limited (x86-64: 128 TiB). When a process has none left, the Go allocator ends it, and
// the service of every disk with it.
const (
	// MaxBytes bounds the mappings: guests of 8 TiB while one table replaces another, of 16 TiB if
	// regions are added and removed one by one.
	MaxBytes = 16 << 40
	// MaxMappings allows the largest table while it replaces another one. The kernel allows a
	// process 65,530 mappings (vm.max_map_count).
	MaxMappings = 2*MaxRegions + 6
)

// Space bounds the mappings of one front-end: those of its table, and of former tables that
// requests in flight still hold. The zero value is usable.
type Space struct {
	bytes, mappings atomic.Int64
}

// reserve accounts for a mapping of n bytes, or returns an error at the limit.
func (s *Space) reserve(n int64) error {
	if all := s.bytes.Add(n); all > MaxBytes {
		s.bytes.Add(-n)
		return fmt.Errorf("%d bytes on top of %d that are mapped: at most %d: %w", n, all-n,
			int64(MaxBytes), ErrRegion)
	}
	if all := s.mappings.Add(1); all > MaxMappings {
		s.unreserve(n)
		return fmt.Errorf("%d regions are mapped or in use by requests, at most %d: %w", all-1,
			MaxMappings, ErrRegion)
	}
	return nil
}

// unreserve undoes reserve.
func (s *Space) unreserve(n int64) {
	s.bytes.Add(-n)
	s.mappings.Add(-1)
}

// NewTable is the function NewTable within the space.
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
