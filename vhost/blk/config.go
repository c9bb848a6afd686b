package blk

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
)

// SectorSize is the protocol's unit of addresses and lengths, in bytes, whatever the disk's block
// size (5.2.6).
const SectorSize = 512

// IDSize is the length of the identifier that GET_ID returns, in bytes.
const IDSize = 20

// SpaceSize is the length of struct virtio_blk_config without the fields of features that we do not
// offer, in bytes.
const SpaceSize = 60

// WritebackOffset is the offset of the writeback byte in the configuration space, the only field
// that a driver may write (with CONFIG_WCE).
const WritebackOffset = 32

// Feature bits (5.2.3).
const (
	FeatureSizeMax     uint64 = 1 << 1  // VIRTIO_BLK_F_SIZE_MAX
	FeatureSegMax      uint64 = 1 << 2  // VIRTIO_BLK_F_SEG_MAX
	FeatureRO          uint64 = 1 << 5  // VIRTIO_BLK_F_RO
	FeatureBlkSize     uint64 = 1 << 6  // VIRTIO_BLK_F_BLK_SIZE
	FeatureFlush       uint64 = 1 << 9  // VIRTIO_BLK_F_FLUSH
	FeatureTopology    uint64 = 1 << 10 // VIRTIO_BLK_F_TOPOLOGY
	FeatureConfigWCE   uint64 = 1 << 11 // VIRTIO_BLK_F_CONFIG_WCE
	FeatureMQ          uint64 = 1 << 12 // VIRTIO_BLK_F_MQ
	FeatureDiscard     uint64 = 1 << 13 // VIRTIO_BLK_F_DISCARD
	FeatureWriteZeroes uint64 = 1 << 14 // VIRTIO_BLK_F_WRITE_ZEROES
)

// Config describes the device to the driver. The zero value is an empty disk.
type Config struct {
	Sectors  uint64 // capacity, in sectors of 512 bytes
	BlkSize  uint32 // preferred block size, bytes; 0: 512
	SegMax   uint32 // maximum data segments of a request; 0: not offered, drivers then use 1
	SizeMax  uint32 // maximum bytes of a segment; 0: not offered, no limit
	Queues   uint16 // request queues; 0: 1
	PhysExp  uint8  // a physical block is 1<<PhysExp blocks of BlkSize
	MinIO    uint16 // suggested minimum request, in blocks of BlkSize
	OptIO    uint32 // suggested optimal request, in blocks of BlkSize
	ReadOnly bool   // writes fail; DISCARD and WRITE_ZEROES are not offered

	MaxDiscardSectors     uint32 // of one segment; 0: DISCARD is not offered
	MaxDiscardSeg         uint32 // segments of one request; 0: 1
	DiscardAlign          uint32 // suggested alignment, in sectors
	MaxWriteZeroesSectors uint32 // of one segment; 0: WRITE_ZEROES is not offered
	MaxWriteZeroesSeg     uint32 // segments of one request; 0: 1
	WriteZeroesMayUnmap   bool   // a WRITE_ZEROES may free the blocks

	ID string // at most IDSize bytes of ASCII, answered to GET_ID
}

// ErrConfig reports a device description that no driver could use.
var ErrConfig = errors.New("bad virtio-blk configuration")

// Check returns an error that wraps ErrConfig if the description is wrong.
func (c *Config) Check() error {
	switch {
	case c.Sectors > math.MaxInt64/SectorSize:
		return fmt.Errorf("capacity: %d sectors are more than 2^63 bytes: %w", c.Sectors, ErrConfig)
	case c.BlkSize != 0 && (c.BlkSize < SectorSize || c.BlkSize&(c.BlkSize-1) != 0):
		return fmt.Errorf("block size: expected a power of two of at least %d bytes, found %d: %w",
			SectorSize, c.BlkSize, ErrConfig)
	case len(c.ID) > IDSize:
		return fmt.Errorf("ID: expected at most %d bytes, found %d: %w", IDSize, len(c.ID),
			ErrConfig)
	}
	return nil
}

// Features returns the virtio-blk feature bits to offer. FLUSH and CONFIG_WCE are always offered: a
// driver without them may assume that every write is durable when it completes.
func (c *Config) Features() uint64 {
	f := FeatureBlkSize | FeatureFlush | FeatureTopology | FeatureConfigWCE
	for _, opt := range []struct {
		on  bool
		bit uint64
	}{
		{c.SizeMax > 0, FeatureSizeMax},
		{c.SegMax > 0, FeatureSegMax},
		{c.ReadOnly, FeatureRO},
		{c.Queues > 1, FeatureMQ},
		{c.MaxDiscardSectors > 0 && !c.ReadOnly, FeatureDiscard},
		{c.MaxWriteZeroesSectors > 0 && !c.ReadOnly, FeatureWriteZeroes},
	} {
		if opt.on {
			f |= opt.bit
		}
	}
	return f
}

// Space returns struct virtio_blk_config (5.2.4), little-endian. wce is the current state of the
// write cache.
func (c *Config) Space(wce bool) [SpaceSize]byte {
	var b [SpaceSize]byte
	le := binary.LittleEndian
	le.PutUint64(b[0:], c.Sectors)
	le.PutUint32(b[8:], c.SizeMax)
	le.PutUint32(b[12:], c.SegMax)
	// b[16:20] is the geometry, which is not offered.
	le.PutUint32(b[20:], max(c.BlkSize, SectorSize))
	b[24] = c.PhysExp
	// b[25], alignment_offset: the disk starts on a physical block.
	le.PutUint16(b[26:], c.MinIO)
	le.PutUint32(b[28:], c.OptIO)
	if wce {
		b[WritebackOffset] = 1
	}
	le.PutUint16(b[34:], max(c.Queues, 1))
	le.PutUint32(b[36:], c.MaxDiscardSectors)
	le.PutUint32(b[40:], max(c.MaxDiscardSeg, 1))
	le.PutUint32(b[44:], c.DiscardAlign)
	le.PutUint32(b[48:], c.MaxWriteZeroesSectors)
	le.PutUint32(b[52:], max(c.MaxWriteZeroesSeg, 1))
	if c.WriteZeroesMayUnmap {
		b[56] = 1
	}
	return b
}
