package crash

import (
	"encoding/binary"
	"fmt"
	"path"

	"cowblk/cow/cowtest"
	"cowblk/cow/cowtest/faultfs"
)

// This package makes the files to import, because qemu-img cannot run on a machine in memory.
// Clusters have 512 bytes, the smallest size, so each is one sector.

const (
	// imageSize is the length of the raw file in bytes. Small images are cheap to open: a
	// fingerprint takes 256 samples of any image.
	imageSize  = 3 * cowtest.SectorSize
	sourceFile = "/src.raw"
	// longestChain is the maximum length of a chain of qcow2 files.
	longestChain = 3
	// firstSource is the content of the first qcow2 file; no write has such a number.
	firstSource cowtest.Content = 1 << 32
)

// source is the argument of an import: "" the raw file, "N" a chain of N qcow2 files, "N+raw" the
// same on the raw file.
type source struct {
	files int // number of qcow2 files
	raw   bool
}

func parseSource(arg string) (src source, err error) {
	switch n, _ := fmt.Sscanf(arg, "%d", &src.files); {
	case arg == "":
		src.raw = true
	case n == 1 && src.files >= 1 && src.files <= longestChain:
		src.raw = arg == fmt.Sprintf("%d+raw", src.files)
	default:
		err = fmt.Errorf("import from %q: expected nothing, N or N+raw, with N from 1 to %d", arg,
			longestChain)
	}
	return src, err
}

// path returns the path of the file to import.
func (src source) path() string {
	if src.files == 0 {
		return sourceFile
	}
	return "/" + src.file(src.files)
}

// file returns the name of the n-th qcow2 file from the bottom.
func (src source) file(n int) string {
	if src.raw {
		return fmt.Sprintf("over-raw-%d.qcow2", n)
	}
	return fmt.Sprintf("alone-%d.qcow2", n)
}

// backing reports whether the file has backing files.
func (src source) backing() bool { return src.files > 1 || src.files == 1 && src.raw }

// sectorsOf returns the length of the n-th qcow2 file's disk in sectors: upper files are longer.
func sectorsOf(n int) int { return 6 + 2*n }

// States of a sector in the n-th qcow2 file.
const (
	sectorBelow = iota // not allocated: the file below counts
	sectorZero
	sectorData
)

func sectorIn(n, sector int) int {
	return []int{sectorData, sectorZero, sectorBelow, sectorBelow}[(sector+n)%4]
}

// rawContent returns the content of the raw file.
func rawContent() *content {
	c := newImage(imageSize, cowtest.BaseContent)
	c.sectors[1] = newContent(imageSize, nil).sectors[1]
	return c
}

// content returns the content of the file as a disk, computed from the top sector by sector.
func (src source) content() *content {
	raw := rawContent()
	if src.files == 0 {
		return raw
	}
	c := newContent(int64(sectorsOf(src.files))*cowtest.SectorSize, nil)
sectors:
	for s := range c.sectors {
		for n := src.files; n > 0; n-- {
			if s >= sectorsOf(n) {
				continue sectors // a shorter file hides the content below it
			}
			switch sectorIn(n, s) {
			case sectorZero:
				continue sectors
			case sectorData:
				c.sectors[s] = []*write{{id: firstSource + cowtest.Content(n),
					what: fmt.Sprintf("file %d of the source", n), acked: true}}
				continue sectors
			}
		}
		if src.raw && s < len(raw.sectors) {
			c.sectors[s] = raw.sectors[s]
		}
	}
	return c
}

// putSources makes the files to import.
func putSources(m *faultfs.Machine) {
	p := make([]byte, imageSize)
	cowtest.Stamp(p, 0, cowtest.BaseContent)
	clear(p[512:1024]) // zeros
	m.Put(sourceFile, p)
	for _, src := range []source{{raw: true}, {raw: false}} {
		below, format := "", ""
		if src.raw {
			below, format = path.Base(sourceFile), "raw"
		}
		for n := 1; n <= longestChain; n++ {
			m.Put("/"+src.file(n), qcow2File(n, below, format))
			below, format = src.file(n), "qcow2"
		}
	}
}

// Constants of a qcow2 file (QEMU, docs/interop/qcow2.txt).
const (
	clusterSize          = 512
	extensionOfBacking   = 0xe2792aca // the format of the backing file
	entryCopied          = 1 << 63
	entryZero            = 1
	tableL1, tableL2     = 1, 2 // clusters
	firstData            = 3
	backingNameAt        = 256 // bytes
	headerLength, v3Bits = 104, 9
)

// qcow2File returns the n-th qcow2 file, with a backing file of the given format; "": with none.
func qcow2File(n int, below, format string) []byte {
	be, sectors := binary.BigEndian, sectorsOf(n)
	p := make([]byte, firstData*clusterSize)
	copy(p, "QFI\xfb")
	be.PutUint32(p[4:], 3) // version
	if below != "" {
		be.PutUint64(p[8:], backingNameAt)
		be.PutUint32(p[16:], uint32(len(below)))
		copy(p[backingNameAt:], below)
		be.PutUint32(p[headerLength:], extensionOfBacking)
		be.PutUint32(p[headerLength+4:], uint32(len(format)))
		copy(p[headerLength+8:], format)
	}
	be.PutUint32(p[20:], v3Bits)
	be.PutUint64(p[24:], uint64(sectors*clusterSize))
	be.PutUint32(p[36:], 1) // entries of the L1 table
	be.PutUint64(p[40:], tableL1*clusterSize)
	be.PutUint64(p[48:], tableL1*clusterSize) // the refcounts, which a reader ignores
	be.PutUint32(p[56:], 1)
	be.PutUint32(p[96:], 4) // refcounts of 16 bits
	be.PutUint32(p[100:], headerLength)
	be.PutUint64(p[tableL1*clusterSize:], entryCopied|tableL2*clusterSize)
	for s := range sectors {
		entry := uint64(0)
		switch sectorIn(n, s) {
		case sectorZero:
			entry = entryZero
		case sectorData:
			entry = entryCopied | uint64(len(p))
			data := make([]byte, clusterSize)
			cowtest.Stamp(data, int64(s), firstSource+cowtest.Content(n))
			p = append(p, data...)
		}
		be.PutUint64(p[tableL2*clusterSize+8*s:], entry)
	}
	return p
}
