package store

import (
	"errors"
	"fmt"
	"os"

	"cowblk/cow/layer"
)

// Usage describes the space of one layer.
type Usage struct {
	State  string `json:"state"`  // "head" or "sealed"
	Size   int64  `json:"size"`   // bytes of the disk at the layer's creation
	Blocks uint64 `json:"blocks"` // owned by the layer
	Owned  int64  `json:"owned"`  // the same in bytes
	// Allocated is the space of the layer in the store, in bytes on the file system: less than
	// Owned if blocks are zeros. For a layer outside the store it is the space of its checksums.
	Allocated int64 `json:"allocated"`
	// Flushed: the layer is being written or was not closed cleanly; Blocks counts the durable
	// bits.
	Flushed bool `json:"flushed,omitempty"`
	// Source says where Blocks comes from; see the constants.
	Source string `json:"source"`
}

// Sources of Usage.Blocks.
const (
	SourceHeader  = "header"  // the layer was closed cleanly: exact
	SourceMap     = "map"     // the durable bits: a lower bound
	SourceProcess = "process" // the process that serves the disk: exact; set by SetServed
)

// SetServed replaces the numbers of a served disk's head by those of its process: blocks of
// blockSize bytes.
func (u *Usage) SetServed(blocks uint64, blockSize int) {
	u.Blocks, u.Flushed, u.Source = blocks, false, SourceProcess
	u.Owned = owned(blocks, blockSize, u.Size)
}

// owned converts blocks to bytes. It does not exceed size: the last block may be partial.
func owned(blocks uint64, blockSize int, size int64) int64 {
	if blocks > uint64(size)/uint64(blockSize) {
		return size
	}
	return int64(blocks) * int64(blockSize)
}

// LayerUsage reads the usage of a layer without opening it, even while a process writes it. Errors:
// ErrRefused (unreadable header).
func (s *Store) LayerUsage(l *Layer) (*Usage, error) {
	p := s.paths(l)
	h, err := layer.ReadHeader(s.fs, p.Map)
	if errors.Is(err, os.ErrNotExist) {
		return nil, refused(p.Map, "map of layer "+l.UUID.String(), "a file", "none", "")
	}
	if err != nil {
		return nil, Classify(err)
	}
	u := &Usage{State: h.State.String(), Size: h.Size, Blocks: h.Owned, Source: SourceHeader}
	if !h.Clean {
		if u.Blocks, err = layer.CountOwned(s.fs, p.Map, &h); err != nil {
			return nil, fmt.Errorf("%s: %w", p.Map, err)
		}
		u.Flushed, u.Source = true, SourceMap
	}
	u.Owned = owned(u.Blocks, int(h.BlockSize), h.Size)
	u.Allocated = s.storeBytes(l)
	return u, nil
}

// storeBytes returns the space of a layer's files in the store, in bytes on the file system.
func (s *Store) storeBytes(l *Layer) int64 {
	p := s.paths(l)
	if l.inStore() {
		return s.allocated(p.Map) + s.allocated(p.Data)
	}
	return s.allocated(p.Checksums)
}
