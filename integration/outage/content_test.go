//go:build integration

package outage

import (
	"bytes"
	"encoding/binary"
	"fmt"
)

const sectorSize = 512

// version identifies the content of a sector: 0 is the base's content, writes count from 1, and
// zeros is the content after WRITE_ZEROES.
type version uint32

const zeros version = 1<<32 - 1

func (v version) String() string {
	switch v {
	case 0:
		return "the base's content"
	case zeros:
		return "zeros"
	}
	return fmt.Sprintf("version %d", uint32(v))
}

// Layout of a sector: disk, version, sector number, then a pattern that depends on all three.
const (
	atDisk    = 0
	atVersion = 4
	atSector  = 8
	atPattern = 16
)

// put fills a sector.
func put(p []byte, disk uint32, sector int64, v version) {
	if v == zeros {
		clear(p[:sectorSize])
		return
	}
	if v == 0 {
		disk = 0 // all disks share the base
	}
	binary.LittleEndian.PutUint32(p[atDisk:], disk)
	binary.LittleEndian.PutUint32(p[atVersion:], uint32(v))
	binary.LittleEndian.PutUint64(p[atSector:], uint64(sector))
	x := uint64(disk)<<40 ^ uint64(v)<<20 ^ uint64(sector)
	for i := atPattern; i < sectorSize; i += 8 {
		x += 0x9e3779b97f4a7c15
		z := (x ^ x>>30) * 0xbf58476d1ce4e5b9
		binary.LittleEndian.PutUint64(p[i:], z^z>>27)
	}
}

// readVersion returns the version that a sector of the disk holds, or an error that describes the
// content.
func readVersion(p []byte, disk uint32, sector int64) (version, error) {
	p = p[:sectorSize]
	if allZero(p) {
		return zeros, nil
	}
	v := version(binary.LittleEndian.Uint32(p[atVersion:]))
	var want [sectorSize]byte
	put(want[:], disk, sector, v)
	if bytes.Equal(p, want[:]) {
		return v, nil
	}
	d, s := binary.LittleEndian.Uint32(p[atDisk:]), int64(binary.LittleEndian.Uint64(p[atSector:]))
	put(want[:], d, s, v)
	if bytes.Equal(p, want[:]) {
		return 0, fmt.Errorf("%v of sector %d of disk %d", v, s, d)
	}
	return 0, fmt.Errorf("unknown content that begins with %x", p[:24])
}

func allZero(p []byte) bool {
	for _, b := range p {
		if b != 0 {
			return false
		}
	}
	return true
}
