package layer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"cowblk/cow/finding"
)

// openChecksums finds the data checksums of the layer, and faults in the header of a checksum file.
func (x *inspector) openChecksums() error {
	h := &x.Header
	if h.HasChecksums() {
		x.table = &checksumTable{zeroPadded{x.mapf}, h.MapSize(), h.ChecksumsCRC}
		return nil
	}
	if h.State != Sealed || x.paths.Checksums == "" {
		return nil
	}
	f, err := x.fs.OpenFile(x.paths.Checksums, x.flag, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	x.checksums = f
	x.table, err = readChecksumFile(f, h)
	var fault *finding.Finding
	if errors.As(err, &fault) {
		x.badHeader = fault
	} else if err != nil || x.table == nil {
		return err
	}
	if x.table != nil {
		x.table.file = zeroPadded{f}
		return nil
	}
	if errors.Is(err, ErrUnsupported) {
		return nil // of a newer version: neither checked nor repaired
	}
	// If the data agrees with the table, the table's checksum restores the header.
	x.table = &checksumTable{file: zeroPadded{f}, off: checksumTableOffset}
	x.table.crc, err = x.tableChecksum()
	return err
}

// inspectChecksums compares the table of data checksums with its checksum. A table that does not
// match can be computed again if the data matches the checksum in the header, which takes reading
// all of the data. Table and data prove the header of a checksum file.
func (x *inspector) inspectChecksums() (*finding.Finding, error) {
	if x.table == nil {
		return x.badHeader, nil
	}
	found, err := x.tableChecksum()
	if err != nil {
		return nil, err
	}
	f := x.badHeader
	if f == nil {
		if found == x.table.crc {
			return nil, nil
		}
		f = finding.New(ErrDamaged, x.table.file.Name(), "checksum of the checksums of the data",
			hex32(x.table.crc), hex32(found), adviceRestore)
	}
	x.badChecksums = true
	if x.data == nil {
		return f, nil
	}
	var computed uint32
	t := &checksumBuilder{header: &x.Header, mapf: zeroPadded{x.mapf}, data: x.data,
		read: readData(x.data)}
	t.sink = func(page uint64, raw []byte) error {
		computed = addRawPageCRC(computed, page, raw)
		return nil
	}
	if t.build() == nil && computed == x.table.crc {
		f.Remedy = RestoreChecksums
	}
	return f, nil
}

// tableChecksum returns the checksum of the table in the file.
func (x *inspector) tableChecksum() (found uint32, err error) {
	err = scanPages(x.table.file, x.table.off, 0, x.Header.checksumPages(),
		func(page uint64, words []uint64) error {
			found = addPageCRC(found, page, words)
			return nil
		})
	return found, err
}

// inspectData reads all of the layer's data. It reports what cannot be read and, with valid
// checksums, what does not match them.
func (x *inspector) inspectData() error {
	if x.table != nil && !x.badChecksums {
		return x.compareChecksums()
	}
	size, err := x.data.Size()
	if err != nil {
		return err
	}
	size = min(size, x.dataSize)
	buf := make([]byte, 4*scanChunk)
	for off := x.Header.DataOffset; off < size; {
		start, end, err := x.data.NextData(off)
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		for off = start; off < min(end, size); {
			n := min(min(end, size)-off, int64(len(buf)))
			x.readOrReport(buf[:n], off)
			off += n
			if err := x.params.Data(off, size); err != nil {
				return err
			}
		}
	}
	return x.params.Data(size, size)
}

// readOrReport reads p, or reports that it cannot be read and fills the rest with zeros.
func (x *inspector) readOrReport(p []byte, off int64) {
	if n, err := x.data.ReadAt(p, off); err != nil {
		clear(p[n:])
		x.addFinding(NoRemedy, x.paths.Data, fmt.Sprintf("content from byte %d", off),
			fmt.Sprintf("%d bytes", len(p)), err)
	}
}

// maxBadRanges is the number of ranges of wrong data that get a finding each.
const maxBadRanges = 16

// compareChecksums compares all of the data with its checksums.
func (x *inspector) compareChecksums() error {
	h := &x.Header
	bad := badRanges{x: x}
	next := uint64(0) // next page of the table to compare
	stored := make([]byte, MapPageSize)
	zeros := make([]byte, MapPageSize)
	// Pages that are not computed have no data: all of their checksums are 0.
	skip := func(end uint64) error {
		return scanPages(x.table.file, x.table.off, next, end,
			func(page uint64, words []uint64) error {
				littleEndian(words)
				defer littleEndian(words)
				bad.compare(page, wordBytes(words), zeros)
				return nil
			})
	}
	t := &checksumBuilder{header: h, mapf: zeroPadded{x.mapf}, data: x.data}
	t.read = func(p []byte, off int64) error {
		x.readOrReport(p, off)
		return nil
	}
	t.throttle = func(off int64) error { return x.params.Data(off, x.dataSize) }
	t.sink = func(page uint64, raw []byte) error {
		if err := skip(page); err != nil {
			return err
		}
		next = page + 1
		if _, err := x.table.file.ReadAt(stored, x.table.off+int64(page)*MapPageSize); err != nil {
			return err
		}
		bad.compare(page, stored, raw)
		return nil
	}
	if err := t.build(); err != nil {
		return err
	}
	if err := skip(h.checksumPages()); err != nil {
		return err
	}
	bad.done()
	return x.params.Data(x.dataSize, x.dataSize)
}

// badRanges collects units with wrong checksums; adjacent units are one finding.
type badRanges struct {
	x          *inspector
	start, end uint64 // units
	count      int    // of ranges
}

// compare takes a page of the table as it is stored and as it is computed from the data.
func (b *badRanges) compare(page uint64, stored, computed []byte) {
	for i := range uint64(checksumsPerPage) {
		if binary.LittleEndian.Uint32(stored[i*checksumSize:]) == binary.LittleEndian.Uint32(
			computed[i*checksumSize:]) {
			continue
		}
		unit := page*checksumsPerPage + i
		if unit != b.end {
			b.flush()
			b.start = unit
		}
		b.end = unit + 1
	}
}

func (b *badRanges) flush() {
	if b.start == b.end {
		return
	}
	if b.count++; b.count > maxBadRanges {
		return
	}
	h := &b.x.Header
	start, end := int64(b.start)*h.ChecksumUnit(), min(int64(b.end)*h.ChecksumUnit(), h.Size)
	f := checksumFault(b.x.data.Name(), h.DataOffset, start, end, "the one from when it was sealed",
		"another")
	b.x.Findings = append(b.x.Findings, f)
}

func (b *badRanges) done() {
	b.flush()
	if unnamed := b.count - maxBadRanges; unnamed > 0 {
		b.x.addFinding(NoRemedy, b.x.paths.Data, "checksums of more of the data",
			"those from when it was sealed",
			fmt.Sprintf("%d more ranges that differ", unnamed))
	}
}
