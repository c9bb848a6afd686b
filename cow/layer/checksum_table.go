package layer

import (
	"encoding/binary"
	"io"
	"math"

	"cowblk/cow/vfs"
)

// checksumBuilder computes the data checksums of a sealed layer, page by page of the table, in
// ascending order.
type checksumBuilder struct {
	header *Header
	mapf   mapReader
	data   dataReader
	// read reads all of p; its error ends the work.
	read func(p []byte, off int64) error
	// throttle is called after each piece with the offset behind it in the data file; its error
	// ends the work; nil: none.
	throttle func(off int64) error
	// sink receives each page that is not all zero. It must not keep raw.
	sink func(page uint64, raw []byte) error

	buf        []byte
	page       uint64 // current page
	raw        [MapPageSize]byte
	nonZero    bool  // raw is not all zero
	start, end int64 // range of the data file that may hold data; none yet: 0, 0
}

// checksumChunk is how much data is read at once, in bytes. The processor is not available to
// guests while a chunk is summed.
const checksumChunk = 64 << 10

// dataReader is the part of a data file that checksumBuilder uses.
type dataReader interface {
	NextData(off int64) (start, end int64, err error)
}

// build computes the checksums of the owned blocks. Blocks that the map does not own have none,
// whatever the data file holds there.
func (t *checksumBuilder) build() error {
	t.buf = make([]byte, checksumChunk)
	h := t.header
	err := scanMap(t.mapf, h.MapPages(), func(page uint64, words []uint64) error {
		return eachBitRun(words, func(first, n uint64) error {
			first += page * blocksPerPage
			start := int64(first) * int64(h.BlockSize)
			return t.run(start, min(start+int64(n)*int64(h.BlockSize), h.Size))
		})
	})
	if err != nil {
		return err
	}
	return t.flush()
}

// run computes the checksums of the bytes of the disk from pos to end: whole units of owned blocks.
// Holes are skipped, for their checksum is 0.
func (t *checksumBuilder) run(pos, end int64) error {
	unit, offset := t.header.ChecksumUnit(), t.header.DataOffset
	for pos < end {
		if offset+pos >= t.end {
			var err error
			if t.start, t.end, err = t.data.NextData(offset + pos); err == io.EOF {
				t.start, t.end = math.MaxInt64, math.MaxInt64
				return nil
			} else if err != nil {
				return err
			}
		}
		if t.start > offset+pos {
			pos = max(pos, (t.start-offset)/unit*unit)
		}
		if pos >= end {
			return nil
		}
		// The extent may end within a unit.
		stop := min(end, (t.end-offset+unit-1)/unit*unit)
		p := t.buf[:min(stop-pos, int64(len(t.buf)))]
		if err := t.read(p, offset+pos); err != nil {
			return err
		}
		for i := int64(0); i < int64(len(p)); i += unit {
			if err := t.add(uint64((pos+i)/unit),
				DataChecksum(p[i:min(i+unit, int64(len(p)))])); err != nil {
				return err
			}
		}
		pos += int64(len(p))
		if t.throttle != nil {
			if err := t.throttle(offset + pos); err != nil {
				return err
			}
		}
	}
	return nil
}

func (t *checksumBuilder) add(unit uint64, sum uint32) error {
	if page := unit / checksumsPerPage; page != t.page {
		if err := t.flush(); err != nil {
			return err
		}
		t.page = page
	}
	if sum != 0 {
		binary.LittleEndian.PutUint32(t.raw[unit%checksumsPerPage*checksumSize:], sum)
		t.nonZero = true
	}
	return nil
}

func (t *checksumBuilder) flush() error {
	if !t.nonZero {
		return nil
	}
	err := t.sink(t.page, t.raw[:])
	clear(t.raw[:])
	t.nonZero = false
	return err
}

// readData returns a checksumBuilder.read for a file whose length has been checked.
func readData(f vfs.File) func(p []byte, off int64) error {
	return func(p []byte, off int64) error {
		_, err := f.ReadAt(p, off)
		if err == io.EOF {
			return readError(f, "data", off, int64(len(p)), err)
		}
		return err
	}
}
