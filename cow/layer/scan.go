package layer

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"math/bits"
	"os"

	"cowblk/cow/finding"
	"cowblk/cow/vfs"
)

// scanChunk is the size of one read of a map, in bytes.
const scanChunk = 256 << 10

// mapReader is the part of a file that scanMap uses.
type mapReader interface {
	Name() string
	ReadAt(p []byte, off int64) (int, error)
	NextData(off int64) (start, end int64, err error)
}

// scanMap reads the bitmap of a map file page by page in ascending order and calls visit for each
// page that is not all zero. The words are valid during the call only. Holes are not read.
func scanMap(f mapReader, pages uint64, visit func(page uint64, words []uint64) error) error {
	return scanPages(f, MapOffset, 0, pages, visit)
}

// scanPages is scanMap for pages first to end-1 of a table that begins at byte table of the file.
func scanPages(f mapReader, table int64, first, end uint64, visit func(page uint64,
	words []uint64) error) error {
	words := make([]uint64, min(scanChunk, int64(end-first)*MapPageSize)/8)
	raw := wordBytes(words)
	limit := table + int64(end)*MapPageSize
	for off := table + int64(first)*MapPageSize; off < limit; {
		start, stop, err := f.NextData(off)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		// Data may start or end within a page if the file system's blocks are smaller.
		off = max(off, start/MapPageSize*MapPageSize)
		stop = min(limit, (stop+MapPageSize-1)/MapPageSize*MapPageSize)
		for off < stop {
			n := min(stop-off, int64(len(raw)))
			if _, err := f.ReadAt(raw[:n], off); err != nil {
				return readError(f, "map", off, n, err)
			}
			littleEndian(words[:n/8])
			for i := int64(0); i < n; i += MapPageSize {
				page := words[i/8 : (i+MapPageSize)/8]
				if allZero(page) {
					continue
				}
				if err := visit(uint64((off+i-table)/MapPageSize), page); err != nil {
					return err
				}
			}
			off += n
		}
	}
	return nil
}

// CountOwned counts the bits of a map that may be being written, with the header h. Each bit is
// durable or will be soon.
func CountOwned(fsys vfs.FS, name string, h *Header) (blocks uint64, err error) {
	f, err := fsys.OpenFile(name, os.O_RDONLY, 0)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	err = scanMap(f, h.MapPages(), func(_ uint64, words []uint64) error {
		for _, w := range words {
			blocks += uint64(bits.OnesCount64(w))
		}
		return nil
	})
	return blocks, err
}

// readError turns the end of a file into a finding.
func readError(f mapReader, what string, off, n int64, err error) error {
	if err != io.EOF {
		return err
	}
	return finding.New(ErrDamaged, f.Name(), what+" is truncated",
		fmt.Sprintf("%d bytes at offset %d", n, off), "the end of the file", adviceRestore)
}

func allZero(words []uint64) bool {
	for _, w := range words {
		if w != 0 {
			return false
		}
	}
	return true
}

// mapSummary sums up a map, page by page.
type mapSummary struct {
	blocks uint64 // of the disk
	count  uint64 // set bits
	end    uint64 // one more than the last owned block
	crc    uint32 // see FORMAT.md, "map checksum"
}

// add takes the next page that is not all zero. It fails on a bit beyond the last block.
func (c *mapSummary) add(page uint64, words []uint64, withCRC bool) error {
	set := 0
	for _, w := range words {
		set += bits.OnesCount64(w)
	}
	c.count += uint64(set)
	last := len(words) - 1
	for last > 0 && words[last] == 0 {
		last--
	}
	c.end = page*blocksPerPage + uint64(last)*64 + uint64(bits.Len64(words[last]))
	if c.end > c.blocks {
		return finding.New(ErrDamaged, "", "bitmap",
			fmt.Sprintf("no bit beyond block %d, the last", c.blocks-1),
			fmt.Sprintf("a bit for block %d", c.end-1), adviceRestore)
	}
	if withCRC {
		c.crc = addPageCRC(c.crc, page, words)
	}
	return nil
}

// addPageCRC continues a map checksum with a page.
func addPageCRC(crc uint32, page uint64, words []uint64) uint32 {
	littleEndian(words)
	crc = addRawPageCRC(crc, page, wordBytes(words))
	littleEndian(words)
	return crc
}

// addRawPageCRC is addPageCRC for a page in the byte order of the file.
func addRawPageCRC(crc uint32, page uint64, raw []byte) uint32 {
	var index [8]byte
	binary.LittleEndian.PutUint64(index[:], page)
	return crc32.Update(crc32.Update(crc, castagnoli(), index[:]), castagnoli(), raw)
}
