package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"os"

	"cowblk/cow/layer"
)

// Usage is what one layer holds.
type Usage struct {
	State  string `json:"state"`  // "head" or "sealed"
	Size   int64  `json:"size"`   // bytes, of the disk when the layer was made
	Blocks uint64 `json:"blocks"` // that the layer owns
	Owned  int64  `json:"owned"`  // the same in bytes
	// Allocated is the space that the layer takes in the store, in bytes on the file system: less than Owned where
	// blocks are zeros. Of a layer that is not the store's it is that of the checksums of its data.
	Allocated int64 `json:"allocated"`
	// Flushed: the layer is being written, or was not closed in order; Blocks counts what is durable.
	Flushed bool `json:"flushed,omitempty"`
	// Source says where Blocks is from; see the constants.
	Source string `json:"source"`
}

// Sources of Usage.Blocks.
const (
	SourceHeader  = "header"  // of a layer that was closed in order: exact
	SourceMap     = "map"     // its durable bits: at least so many
	SourceProcess = "process" // that serves the disk: exact; set by a caller that has asked it
)

// SetServed replaces what the files say of a served disk's head by what its process says: blocks of blockSize bytes.
func (u *Usage) SetServed(blocks uint64, blockSize int) {
	u.Blocks, u.Flushed, u.Source = blocks, false, SourceProcess
	u.Owned = owned(blocks, blockSize, u.Size)
}

// owned is blocks in bytes. The last block may be partial; counting it whole would say more than the disk's size.
func owned(blocks uint64, blockSize int, size int64) int64 {
	if blocks > uint64(size)/uint64(blockSize) {
		return size
	}
	return int64(blocks) * int64(blockSize)
}

// LayerUsage reads what a layer holds, without opening it: also while a process writes it. Errors: ErrRefused if its
// header cannot be read.
func (s *Store) LayerUsage(l *Layer) (*Usage, error) {
	p := s.paths(l)
	h, err := layer.ReadHeader(s.fs, p.Map)
	if errors.Is(err, os.ErrNotExist) {
		return nil, &Mismatch{File: p.Map, What: "map of layer " + l.UUID.String(), Expected: "a file", Found: "none"}
	}
	if err != nil {
		return nil, classify(err)
	}
	u := &Usage{State: h.State.String(), Size: h.Size, Blocks: h.Owned, Source: SourceHeader}
	if !h.Clean {
		if u.Blocks, err = s.countBlocks(p.Map, &h); err != nil {
			return nil, fmt.Errorf("%s: %w", p.Map, err)
		}
		u.Flushed, u.Source = true, SourceMap
	}
	u.Owned = owned(u.Blocks, int(h.BlockSize), h.Size)
	u.Allocated = s.storeBytes(l)
	return u, nil
}

// countBlocks counts the bits of a map that somebody may be writing. Each bit is durable or will be in a moment.
func (s *Store) countBlocks(path string, h *layer.Header) (uint64, error) {
	f, err := s.fs.OpenFile(path, os.O_RDONLY, 0)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	var blocks uint64
	buf := make([]byte, chunkSize)
	size := h.MapSize()
	for off := int64(layer.MapOffset); off < size; {
		start, end, err := f.NextData(off)
		if errors.Is(err, io.EOF) || err == nil && start >= size {
			break
		}
		if err != nil {
			return 0, err
		}
		for off = start; off < min(end, size); {
			p := buf[:min(min(end, size)-off, chunkSize)]
			if _, err := f.ReadAt(p, off); err != nil {
				return 0, err
			}
			off += int64(len(p))
			for ; len(p) >= 8; p = p[8:] {
				blocks += uint64(bits.OnesCount64(binary.LittleEndian.Uint64(p)))
			}
		}
	}
	return blocks, nil
}
