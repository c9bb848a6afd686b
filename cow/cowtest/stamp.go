package cowtest

import (
	"encoding/binary"
	"fmt"
)

// SectorSize is the unit of the model, in bytes.
const SectorSize = 512

// Content identifies the content of a sector: the number of the write that stamped it, BaseContent,
// or Zeros.
type Content uint64

// Contents that no write has. Numbers of writes start above them.
const (
	Zeros       Content = 0
	BaseContent Content = 1
	firstWrite  Content = 2
)

const sectorBits = 24 // sectors of the largest model disk: 8 GiB

// Stamp fills p, whole sectors from the given one on, with a content.
func Stamp(p []byte, sector int64, c Content) {
	for ; len(p) > 0; p, sector = p[SectorSize:], sector+1 {
		word := stampOf(sector, c)
		for i := 0; i < SectorSize; i += 8 {
			binary.LittleEndian.PutUint64(p[i:], word)
		}
	}
}

// stampOf returns the word that fills a sector.
func stampOf(sector int64, c Content) uint64 {
	if c == Zeros {
		return 0
	}
	return uint64(c)<<sectorBits | uint64(sector)
}

// Identify returns the contents of a sector in the order in which they appear: one, unless the
// sector is torn. An error: the sector holds something that was never written to it.
func Identify(p []byte, sector int64, dst []Content) ([]Content, error) {
	for i := 0; i < SectorSize; i += 8 {
		word := binary.LittleEndian.Uint64(p[i:])
		if at := int64(word & (1<<sectorBits - 1)); word != 0 && at != sector {
			return nil, fmt.Errorf("sector %d holds, at byte %d, what write %d wrote to sector %d",
				sector, i, word>>sectorBits, at)
		}
		c := Content(word >> sectorBits)
		if len(dst) == 0 || dst[len(dst)-1] != c {
			dst = append(dst, c)
		}
	}
	return dst, nil
}
