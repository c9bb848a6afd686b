package layer

import (
	"fmt"
	"math/bits"
)

const (
	// SectorSize is the unit of sizes and offsets, in bytes.
	SectorSize = 512
	// MinBlockSize, MaxBlockSize and DefaultBlockSize are in bytes.
	MinBlockSize     = 512
	MaxBlockSize     = 64 << 10
	DefaultBlockSize = 4096
	// MaxSize is the largest disk in bytes. It keeps every offset of both files far from overflow.
	MaxSize = 1 << 60

	// MapOffset is the offset of the bitmap in the map file, in bytes.
	MapOffset = 4096
	// MapPageSize is the unit of map writes, in bytes.
	MapPageSize = 4096

	wordsPerPage  = MapPageSize / 8
	blocksPerPage = MapPageSize * 8
)

// Blocks returns the number of blocks of the disk. The last one may be partial.
func (h Header) Blocks() uint64 {
	return (uint64(h.Size) + uint64(h.BlockSize) - 1) / uint64(h.BlockSize)
}

// MapPages returns the number of 4 KiB pages of the bitmap.
func (h Header) MapPages() uint64 { return mapPages(h.Blocks()) }

// MapSize returns the length of the map file in bytes; a device may be longer.
func (h Header) MapSize() int64 { return MapOffset + int64(h.MapPages())*MapPageSize }

func mapPages(blocks uint64) uint64 { return (blocks + blocksPerPage - 1) / blocksPerPage }

// checkGeometry checks a disk's size and block size, in bytes.
func checkGeometry(size int64, blockSize uint32) error {
	switch {
	case size <= 0 || size > MaxSize:
		return fmt.Errorf("size: expected 512 to %d bytes, found %d", int64(MaxSize), size)
	case size%SectorSize != 0:
		return fmt.Errorf("size: expected a multiple of 512 bytes, found %d", size)
	case blockSize < MinBlockSize || blockSize > MaxBlockSize || bits.OnesCount32(blockSize) != 1:
		return fmt.Errorf("block size: expected a power of two from %d to %d, found %d",
			MinBlockSize, MaxBlockSize, blockSize)
	}
	return nil
}
