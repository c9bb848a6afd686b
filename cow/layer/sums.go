package layer

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"cowblk/cow/vfs"
)

// MaxSumUnit is the most that one data sum covers, in bytes.
const MaxSumUnit = 4096

const (
	sumSize     = 4 // bytes
	sumsPerPage = MapPageSize / sumSize
)

// HasSums reports whether the map of a sealed layer ends with data sums.
func (h Header) HasSums() bool {
	return h.State == Sealed && h.Features.MayIgnore&featureDataSums != 0
}

// SumUnit is how much of the disk one data sum covers, in bytes; the last unit may
// be shorter.
func (h Header) SumUnit() int64 { return min(int64(h.BlockSize), MaxSumUnit) }

func (h Header) sumUnits() uint64 { return uint64((h.Size + h.SumUnit() - 1) / h.SumUnit()) }

// sumPages is the number of 4 KiB pages of the table.
func (h Header) sumPages() uint64 { return (h.sumUnits() + sumsPerPage - 1) / sumsPerPage }

// sumsEnd is the length of a map file with data sums in bytes.
func (h Header) sumsEnd() int64 { return h.MapSize() + int64(h.sumPages())*MapPageSize }

// length is what the map file must have at least, in bytes.
func (h Header) length() int64 {
	if h.HasSums() {
		return h.sumsEnd()
	}
	return h.MapSize()
}

// Digest makes the data sum of a unit out of its bytes, piece by piece: their
// CRC-32C, XORed with that of as many zeros, so that a hole has sum 0.
type Digest struct {
	crc uint32
	n   int
}

// Add takes the next bytes of the unit, multiples of 512 bytes in all.
func (d *Digest) Add(p []byte) {
	d.crc = crc32.Update(d.crc, castagnoli(), p)
	d.n += len(p)
}

// Sum is the data sum of what was added, a multiple of 512 up to MaxSumUnit bytes.
func (d *Digest) Sum() uint32 { return d.crc ^ zeroSums[d.n/SectorSize] }

// zeroSums are the CRC-32C of so many sectors of zeros.
var zeroSums = func() (sums [MaxSumUnit/SectorSize + 1]uint32) {
	var zeros [MaxSumUnit]byte
	for i := range sums {
		sums[i] = crc32.Checksum(zeros[:i*SectorSize], castagnoli())
	}
	return sums
}()

// DataSum is the data sum of one unit.
func DataSum(p []byte) uint32 {
	var d Digest
	d.Add(p)
	return d.Sum()
}

// Sums are the data sums of an open, sealed layer, and what of its data has been
// found right since. They may be used by many goroutines, until the layer is
// closed. Units are numbered from 0.
type Sums struct {
	file  vfs.File // that the table is in
	data  string   // path
	start int64    // byte of the data file at which block 0 lies
	table int64    // byte of file
	unit  int64    // bytes
	size  int64    // of the layer, bytes
	right *Bitmap  // by unit
}

// HasSums reports whether the layer has data sums.
func (l *Layer) HasSums() bool {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.table != nil
}

// Sums returns the layer's data sums, or nil if it has none.
func (l *Layer) Sums() (*Sums, error) {
	l.mu.RLock()
	h, t := l.header, l.table
	l.mu.RUnlock()
	if t == nil {
		return nil, nil
	}
	right, err := NewBitmap(h.sumUnits())
	if err != nil {
		return nil, err
	}
	return &Sums{
		file: t.file, data: l.paths.Data, start: l.paths.DataOffset, table: t.off,
		unit: h.SumUnit(), size: h.Size, right: right,
	}, nil
}

// Unit is the number of the unit that byte pos of the disk is in.
func (s *Sums) Unit(pos int64) uint64 { return uint64(pos / s.unit) }

// Bounds are the first byte of a unit and the one behind its last.
func (s *Sums) Bounds(unit uint64) (start, end int64) {
	start = int64(unit) * s.unit
	return start, min(start+s.unit, s.size)
}

// Covered are the first byte and the one behind the last of all units that n bytes
// (> 0) at pos are in.
func (s *Sums) Covered(pos, n int64) (start, end int64) {
	start, _ = s.Bounds(s.Unit(pos))
	_, end = s.Bounds(s.Unit(pos + n - 1))
	return start, end
}

// Right reports whether a unit has been found right.
func (s *Sums) Right(unit uint64) bool { return s.right.Test(unit) }

// SetRight notes that a unit has been found right.
func (s *Sums) SetRight(unit uint64) { s.right.Set(unit, 1) }

// AllRight reports whether every unit that n bytes (> 0) at pos are in has been
// found right.
func (s *Sums) AllRight(pos, n int64) bool {
	for unit, last := s.Unit(pos), s.Unit(pos+n-1); unit <= last; unit++ {
		if !s.right.Test(unit) {
			return false
		}
	}
	return true
}

// Load reads the sums of units from unit on into p, four bytes each, for Sum; it
// uses up iov, which has room for one. Without wait it returns vfs.ErrWouldBlock
// where it would have to.
func (s *Sums) Load(p []byte, iov []vfs.Iovec, unit uint64, wait bool) error {
	off := s.table + int64(unit)*sumSize
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
			return &Fault{Path: s.file.Name(), What: "data sums are truncated", Expected: fmt.Sprintf("%d bytes at offset %d", len(p), off),
				Found: "the end of the file", Advice: adviceRestore, Err: ErrDamaged}
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// Sum is the i-th of the sums that Load has read into p.
func (*Sums) Sum(p []byte, i int) uint32 { return binary.LittleEndian.Uint32(p[i*sumSize:]) }

// Fault is the error of a unit whose content has another sum than it should.
func (s *Sums) Fault(unit uint64, expected, found uint32) error {
	start, end := s.Bounds(unit)
	return sumFault(s.data, s.start, start, end, hex32(expected), hex32(found))
}

// sumFault is about the bytes of the disk from start to end in a data file.
func sumFault(path string, offset, start, end int64, expected, found string) *Fault {
	return &Fault{Path: path, What: fmt.Sprintf("checksum of the data from byte %d to %d", offset+start, offset+end-1), Expected: expected, Found: found,
		Advice: adviceRestore, Err: ErrDamaged}
}
