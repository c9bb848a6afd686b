package layer

import (
	"encoding/binary"
	"fmt"
	"io"
)

// lookAtSums compares the table of data sums with its checksum. If it is another
// one, and the data is what the header's checksum was made of, the table can be
// made again; that takes reading all of the data.
func (x *inspector) lookAtSums() (*Finding, error) {
	h := &x.Header
	if !h.HasSums() {
		return nil, nil
	}
	var found uint32
	err := scanPages(padded{x.mapf}, h.MapSize(), 0, h.sumPages(), func(page uint64, words []uint64) error {
		found = addPageCRC(found, page, words)
		return nil
	})
	if err != nil || found == h.SumsCRC {
		return nil, err
	}
	x.badSums = true
	f := &Finding{Fault: &Fault{Path: x.mapf.Name(), What: "checksum of the checksums of the data", Expected: hex32(h.SumsCRC), Found: hex32(found),
		Advice: adviceRestore, Err: ErrDamaged}}
	if x.data == nil {
		return f, nil
	}
	var computed uint32
	t := &sumTable{header: h, mapf: padded{x.mapf}, data: x.data, read: readData(x.data)}
	t.sink = func(page uint64, raw []byte) error {
		computed = addRawPageCRC(computed, page, raw)
		return nil
	}
	if t.build() == nil && computed == h.SumsCRC {
		f.Remedy = RestoreSums
	}
	return f, nil
}

// lookAtData reads all of the layer's data, for the sake of what cannot be read and,
// where there are sound sums of it, of what is not what it was.
func (x *inspector) lookAtData() error {
	if x.Header.HasSums() && !x.badSums {
		return x.compareSums()
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
			x.tryRead(buf[:n], off)
			off += n
			if err := x.params.Data(off, size); err != nil {
				return err
			}
		}
	}
	return x.params.Data(size, size)
}

// tryRead reads p, or finds that it cannot be read.
func (x *inspector) tryRead(p []byte, off int64) {
	if n, err := x.data.ReadAt(p, off); err != nil {
		clear(p[n:])
		x.find(NoRemedy, fmt.Sprintf("content from byte %d", off), fmt.Sprintf("%d bytes", len(p)), err.Error(), adviceRestore, x.data, ErrDamaged)
	}
}

// maxBadRanges is how many ranges of wrong data are named one by one.
const maxBadRanges = 16

// compareSums compares all of the data with its sums.
func (x *inspector) compareSums() error {
	h := &x.Header
	bad := badRanges{x: x}
	next := uint64(0) // page of the table that is to be compared
	stored := make([]byte, MapPageSize)
	zeros := make([]byte, MapPageSize)
	// Of pages that are not computed the sums are all 0.
	skip := func(end uint64) error {
		return scanPages(padded{x.mapf}, h.MapSize(), next, end, func(page uint64, words []uint64) error {
			littleEndian(words)
			defer littleEndian(words)
			bad.compare(page, wordBytes(words), zeros)
			return nil
		})
	}
	t := &sumTable{header: h, mapf: padded{x.mapf}, data: x.data}
	t.read = func(p []byte, off int64) error {
		x.tryRead(p, off)
		return nil
	}
	t.pause = func(off int64) error { return x.params.Data(off, x.dataSize) }
	t.sink = func(page uint64, raw []byte) error {
		if err := skip(page); err != nil {
			return err
		}
		next = page + 1
		if _, err := (padded{x.mapf}).ReadAt(stored, h.MapSize()+int64(page)*MapPageSize); err != nil {
			return err
		}
		bad.compare(page, stored, raw)
		return nil
	}
	if err := t.build(); err != nil {
		return err
	}
	if err := skip(h.sumPages()); err != nil {
		return err
	}
	bad.done()
	return x.params.Data(x.dataSize, x.dataSize)
}

// badRanges makes findings of units with wrong sums, adjacent ones one finding.
type badRanges struct {
	x          *inspector
	start, end uint64 // units
	count      int    // of ranges
}

// compare takes a page of the table, as it is and as it is computed from the data.
func (b *badRanges) compare(page uint64, stored, computed []byte) {
	for i := range uint64(sumsPerPage) {
		if binary.LittleEndian.Uint32(stored[i*sumSize:]) == binary.LittleEndian.Uint32(computed[i*sumSize:]) {
			continue
		}
		unit := page*sumsPerPage + i
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
	start, end := int64(b.start)*h.SumUnit(), min(int64(b.end)*h.SumUnit(), h.Size)
	f := sumFault(b.x.data.Name(), h.DataOffset, start, end, "that of when it was sealed", "another one")
	b.x.Findings = append(b.x.Findings, Finding{f, NoRemedy})
}

func (b *badRanges) done() {
	b.flush()
	if unnamed := b.count - maxBadRanges; unnamed > 0 {
		b.x.find(NoRemedy, "checksums of more of the data", "those of when it was sealed", fmt.Sprintf("%d more ranges with others", unnamed), adviceRestore, b.x.data, ErrDamaged)
	}
}
