package layer

import (
	"encoding/binary"
	"hash/crc32"
	"time"

	"github.com/google/uuid"
)

// Known is what a manifest says about a layer: enough to tell whether a header belongs to it, and
// to restore a damaged header.
type Known struct {
	UUID      uuid.UUID // zero: nothing is known
	Parent    uuid.UUID // zero: none
	BlockSize uint32    // bytes
	Base      Fingerprint
	BaseSize  int64 // bytes
	// Size and Created are only tried: a lower layer may be smaller than the disk, and a layer may
	// be older than its place in the manifest.
	Size    int64
	Created time.Time
}

// Matches reports whether a header is that of the layer at p that k describes.
func (k *Known) Matches(p Paths, h *Header) bool {
	return h.UUID == k.UUID && h.Parent == k.Parent && h.BlockSize == k.BlockSize &&
		h.Base == k.Base && h.BaseSize == k.BaseSize && h.DataOffset == p.DataOffset
}

// restoreHeader finds the former content of a damaged header, if its checksum proves it: either
// only fields that the manifest knows are wrong, and the checksum matches with the right values; or
// exactly one bit of the sector is wrong, and flipping it makes the checksum match and gives the
// header that the manifest expects. (Two valid sectors of this length differ in at least six bits
// under CRC-32C: a valid sector at a distance of one bit is the only one near.) A header whose
// checksum matches is not damaged, and nothing is returned.
func restoreHeader(sector [SectorSize]byte, p Paths, k Known) (fixed [SectorSize]byte, h Header,
	ok bool) {
	if k.UUID == uuid.Nil || checksumHolds(&sector) {
		return sector, Header{}, false
	}
	for try := range 4 {
		fixed = sector
		k.write(&fixed, p, try&1 != 0, try&2 != 0)
		if h, ok = k.accept(&fixed, p); ok {
			return fixed, h, true
		}
	}
	fixed = sector
	for bit := range SectorSize * 8 {
		fixed[bit/8] ^= 1 << (bit % 8)
		if h, ok = k.accept(&fixed, p); ok {
			return fixed, h, true
		}
		fixed[bit/8] ^= 1 << (bit % 8)
	}
	return sector, Header{}, false
}

func (k *Known) accept(sector *[SectorSize]byte, p Paths) (Header, bool) {
	if !checksumHolds(sector) {
		return Header{}, false
	}
	h, err := decodeHeader(sector)
	return h, err == nil && k.Matches(p, &h)
}

// write puts the fields that k knows into a sector and keeps the rest, in particular the checksum.
func (k *Known) write(sector *[SectorSize]byte, p Paths, size, created bool) {
	le := binary.LittleEndian
	copy(sector[offMagic:], Magic)
	le.PutUint32(sector[offVersion:], formatVersion)
	le.PutUint32(sector[offMapOffset:], MapOffset)
	copy(sector[offUUID:], k.UUID[:])
	copy(sector[offParent:], k.Parent[:])
	le.PutUint32(sector[offBlockSize:], k.BlockSize)
	le.PutUint64(sector[offDataOffset:], uint64(p.DataOffset))
	le.PutUint64(sector[offBaseSize:], uint64(k.BaseSize))
	copy(sector[offBase:], k.Base[:])
	if size {
		le.PutUint64(sector[offSize:], uint64(k.Size))
	}
	if created {
		le.PutUint64(sector[offCreated:], uint64(nanoseconds(k.Created)))
	}
}

func checksumHolds(sector *[SectorSize]byte) bool {
	return binary.LittleEndian.Uint32(sector[offHeaderCRC:]) == crc32.Checksum(
		sector[:offHeaderCRC], castagnoli())
}
