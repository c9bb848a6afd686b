package layer

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"cowblk/cow/finding"
	"cowblk/cow/vfs"
)

// MaxChecksumUnit is the largest number of bytes that one data checksum covers.
const MaxChecksumUnit = 4096

const (
	checksumSize     = 4 // bytes
	checksumsPerPage = MapPageSize / checksumSize
)

// HasChecksums reports whether data checksums follow the map of a sealed layer.
func (h Header) HasChecksums() bool {
	return h.State == Sealed && h.Features.MayIgnore&featureDataChecksums != 0
}

// ChecksumUnit returns the number of bytes of the disk that one data checksum covers; the last unit
// may be shorter.
func (h Header) ChecksumUnit() int64 { return min(int64(h.BlockSize), MaxChecksumUnit) }

func (h Header) checksumUnits() uint64 {
	return uint64((h.Size + h.ChecksumUnit() - 1) / h.ChecksumUnit())
}

// checksumPages returns the number of 4 KiB pages of the table.
func (h Header) checksumPages() uint64 {
	return (h.checksumUnits() + checksumsPerPage - 1) / checksumsPerPage
}

// checksumsEnd returns the length in bytes of a map file with data checksums.
func (h Header) checksumsEnd() int64 { return h.MapSize() + int64(h.checksumPages())*MapPageSize }

// length returns the minimum length of the map file in bytes.
func (h Header) length() int64 {
	if h.HasChecksums() {
		return h.checksumsEnd()
	}
	return h.MapSize()
}

// Digest computes the data checksum of a unit from its bytes, piece by piece: their CRC-32C, XORed
// with the CRC-32C of as many zeros, so that the checksum of a hole is 0.
type Digest struct {
	crc uint32
	n   int
}

// Add appends bytes of the unit. The sum of their lengths must be a multiple of 512 for Sum.
func (d *Digest) Add(p []byte) {
	d.crc = crc32.Update(d.crc, castagnoli(), p)
	d.n += len(p)
}

// Sum returns the data checksum of the bytes added, a multiple of 512 up to MaxChecksumUnit.
func (d *Digest) Sum() uint32 { return d.crc ^ zeroCRCs[d.n/SectorSize] }

// zeroCRCs[n] is the CRC-32C of n sectors of zeros.
var zeroCRCs = func() (sums [MaxChecksumUnit/SectorSize + 1]uint32) {
	var zeros [MaxChecksumUnit]byte
	for i := range sums {
		sums[i] = crc32.Checksum(zeros[:i*SectorSize], castagnoli())
	}
	return sums
}()

// DataChecksum returns the data checksum of one unit.
func DataChecksum(p []byte) uint32 {
	var d Digest
	d.Add(p)
	return d.Sum()
}

// Checksums are the data checksums of an open, sealed layer, and a record of the units that were
// verified since the open. They may be used concurrently, until the layer is closed. Units are
// numbered from 0.
type Checksums struct {
	file     vfs.File // of the table
	data     string   // path of the data file
	start    int64    // byte of the data file at which block 0 lies
	table    int64    // byte of file
	unit     int64    // bytes
	size     int64    // of the layer, bytes
	verified *Bitmap  // by unit
}

// HasChecksums reports whether the layer has data checksums.
func (l *Layer) HasChecksums() bool {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.table != nil
}

// Checksums returns the layer's data checksums, or nil if it has none.
func (l *Layer) Checksums() (*Checksums, error) {
	l.mu.RLock()
	h, t := l.header, l.table
	l.mu.RUnlock()
	if t == nil {
		return nil, nil
	}
	verified, err := NewBitmap(h.checksumUnits())
	if err != nil {
		return nil, err
	}
	return &Checksums{
		file: t.file, data: l.paths.Data, start: l.paths.DataOffset, table: t.off,
		unit: h.ChecksumUnit(), size: h.Size, verified: verified,
	}, nil
}

// Unit returns the number of the unit that holds byte pos of the disk.
func (s *Checksums) Unit(pos int64) uint64 { return uint64(pos / s.unit) }

// Bounds returns the first byte of a unit and the byte behind its last.
func (s *Checksums) Bounds(unit uint64) (start, end int64) {
	start = int64(unit) * s.unit
	return start, min(start+s.unit, s.size)
}

// Covered returns the first byte of, and the byte behind, the units that n bytes (> 0) at pos
// touch.
func (s *Checksums) Covered(pos, n int64) (start, end int64) {
	start, _ = s.Bounds(s.Unit(pos))
	_, end = s.Bounds(s.Unit(pos + n - 1))
	return start, end
}

// Verified reports whether a unit has been verified.
func (s *Checksums) Verified(unit uint64) bool { return s.verified.Test(unit) }

// SetVerified records that a unit has been verified.
func (s *Checksums) SetVerified(unit uint64) { s.verified.Set(unit, 1) }

// AllVerified reports whether every unit that n bytes (> 0) at pos touch has been verified.
func (s *Checksums) AllVerified(pos, n int64) bool {
	for unit, last := s.Unit(pos), s.Unit(pos+n-1); unit <= last; unit++ {
		if !s.verified.Test(unit) {
			return false
		}
	}
	return true
}

// Load reads the checksums of units from unit on into p, four bytes each, for Sum; it uses iov,
// which has capacity for one. Without wait it returns vfs.ErrWouldBlock instead of blocking.
func (s *Checksums) Load(p []byte, iov []vfs.Iovec, unit uint64, wait bool) error {
	off := s.table + int64(unit)*checksumSize
	for len(p) > 0 {
		v := vfs.Iovec{Base: &p[0]}
		v.SetLen(len(p))
		var n int
		var err error
		if iov = append(iov[:0], v); wait {
			n, err = s.file.Preadv(iov, off)
		} else {
			n, err = s.file.PreadvNowait(iov, off)
		}
		if err != nil {
			return err
		}
		if n == 0 {
			return finding.New(ErrDamaged, s.file.Name(), "data checksums are truncated",
				fmt.Sprintf("%d bytes at offset %d", len(p), off), "the end of the file",
				adviceRestore)
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// Sum returns checksum i of p, which Load has filled.
func (*Checksums) Sum(p []byte, i int) uint32 {
	return binary.LittleEndian.Uint32(p[i*checksumSize:])
}

// Fault returns the error of a unit whose content does not match its checksum.
func (s *Checksums) Fault(unit uint64, expected, found uint32) error {
	start, end := s.Bounds(unit)
	return checksumFault(s.data, s.start, start, end, hex32(expected), hex32(found))
}

// checksumFault is about the bytes of the disk from start to end in a data file.
func checksumFault(path string, offset, start, end int64, expected, found string) *finding.Finding {
	return finding.New(ErrDamaged, path,
		fmt.Sprintf("checksum of the data from byte %d to %d", offset+start, offset+end-1),
		expected, found, adviceRestore)
}
