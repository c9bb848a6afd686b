package layer

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"cowblk/cow/finding"
	"cowblk/cow/vfs"
)

// Remedies: what Repair can do about a finding without guessing. A checksum or a count proves the
// result, or no reader depends on it.
const (
	NoRemedy         = ""
	RestoreHeader    = "write the header as its checksum proves that it was"
	GrowMap          = "extend the map with zeros: its checksum or count proves that no bit is lost"
	ClearBits        = "clear the bits beyond the last block"
	GrowData         = "extend the data file to its full length: no owned block is lost"
	RestoreChecksums = "compute the checksums of the data anew: what is left of them proves that they are the same"
)

// InspectParams say how much Inspect reads. The zero value reads header and lengths, and the map of
// a layer that was not closed in order.
type InspectParams struct {
	Known Known
	// Map reads the map of every layer.
	Map bool
	// Data, if not nil, makes Inspect read all of the data and compare it with its checksums, where
	// the layer has them. It is called after each piece with the offset behind it in the data file
	// and the file's length. Its error ends Inspect.
	Data func(done, total int64) error
}

// Inspection is the result of Inspect.
type Inspection struct {
	// Header is zero if no valid or provable header was found. It is the restored header if
	// RestoreHeader is among the remedies.
	Header   Header
	Findings []*finding.Finding // in the order in which Repair handles them
	// the layer is sealed and has checksums of its data, valid or not
	HasChecksums bool
	MapRead      bool
	Owned        uint64 // blocks: counted if MapRead, else from the header
}

// Inspect checks a layer without changing it and without stopping at the first fault. It finds
// everything that makes Open refuse the layer, and also a data file that has lost an unused end. A
// layer without findings may still not be the expected one: compare Header.
//
// It holds a shared lock on the map meanwhile. Errors: ErrInUse, that of InspectParams.Data, the
// operating system's.
func Inspect(fsys vfs.FS, p Paths, o InspectParams) (_ *Inspection, err error) {
	defer addContext(&err, "inspect layer")
	x := &inspector{fs: fsys, flag: os.O_RDONLY, paths: p, params: o}
	defer x.close()
	if err := x.open(false); err != nil {
		return nil, err
	}
	if err := x.inspect(); err != nil {
		return nil, err
	}
	return &x.Inspection, nil
}

// inspector is the state of an inspection, and of a repair that follows it.
type inspector struct {
	Inspection
	fs        vfs.FS
	flag      int // flags of opens
	paths     Paths
	params    InspectParams
	mapf      vfs.File // nil: missing
	data      vfs.File // nil: missing
	checksums vfs.File // checksum file; nil: none

	sector       [SectorSize]byte     // as it is, or as it can be restored
	table        *checksumTable       // of data checksums; continues with zeros; nil: none
	badHeader    *finding.Finding     // fault of the checksum file's header
	badChecksums bool                 // the table does not match its checksum, or has none
	lastPage     [wordsPerPage]uint64 // of the map, without the bits beyond the last block
	dataSize     int64                // required length of the data file
}

func (x *inspector) close() {
	for _, f := range []vfs.File{x.data, x.mapf, x.checksums} {
		if f != nil {
			f.Close()
		}
	}
}

func (x *inspector) addFinding(remedy, file, what string, expected, found any) {
	f := finding.New(ErrDamaged, file, what, expected, found, adviceRestore)
	f.Remedy = remedy
	x.Findings = append(x.Findings, f)
}

// open opens the files and locks the map. A missing file is a finding.
func (x *inspector) open(exclusive bool) error {
	for _, f := range []struct {
		what, name string
		file       *vfs.File
	}{{"map", x.paths.Map, &x.mapf}, {"data", x.paths.Data, &x.data}} {
		file, err := x.fs.OpenFile(f.name, x.flag, 0)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			x.addFinding(NoRemedy, f.name, f.what, "a file", "none")
		case err != nil:
			return err
		default:
			*f.file = file
		}
	}
	if x.mapf == nil {
		return nil
	}
	return lockMap(x.mapf, exclusive)
}

func (x *inspector) inspect() error {
	if x.mapf == nil {
		return nil
	}
	var err error
	x.Header, err = readHeader(x.mapf, &x.sector)
	var fault *finding.Finding
	if errors.As(err, &fault) {
		sector, h, ok := restoreHeader(x.sector, x.paths, x.params.Known)
		if !ok {
			x.Findings = append(x.Findings, fault)
			return nil
		}
		fault.Remedy = RestoreHeader
		x.Findings = append(x.Findings, fault)
		x.sector, x.Header = sector, h
	} else if err != nil {
		return err
	}
	if err := x.openChecksums(); err != nil {
		return err
	}
	x.HasChecksums = x.table != nil || x.badHeader != nil
	if err := x.inspectMap(); err != nil {
		return err
	}
	if x.params.Data != nil && x.data != nil {
		return x.inspectData()
	}
	return nil
}

// inspectMap checks lengths and, if requested or needed, the bitmap.
func (x *inspector) inspectMap() error {
	h := &x.Header
	mapSize, err := x.mapf.Size()
	if err != nil {
		return err
	}
	short := mapSize < h.length()
	truncated, size, err := x.dataTruncated()
	if err != nil {
		return err
	}
	x.Owned = h.Owned
	if !x.params.Map && h.Clean && !short && !truncated && x.badHeader == nil {
		return nil
	}
	c := mapSummary{blocks: h.Blocks()}
	stray := uint64(0) // a block beyond the last whose bit is set; 0: none
	err = scanMap(zeroPadded{x.mapf}, h.MapPages(), func(page uint64, words []uint64) error {
		if page == h.MapPages()-1 {
			stray = clearTail(words, h.Blocks()-page*blocksPerPage, page*blocksPerPage)
			copy(x.lastPage[:], words)
			if allZero(words) {
				return nil
			}
		}
		return c.add(page, words, h.HasMapCRC())
	})
	if err != nil {
		return err
	}
	x.MapRead, x.Owned = true, c.count
	checksums, err := x.inspectChecksums()
	if err != nil {
		return err
	}
	x.reportMap(&c, short, mapSize, stray, checksums)
	if x.data != nil && truncated {
		x.reportData(&c, size)
	}
	return nil
}

// clearTail clears the bits of words from number n on. It returns first plus the number of the last
// of them that was set, or 0.
func clearTail(words []uint64, n, first uint64) (stray uint64) {
	for i := n; i < uint64(len(words))*64; i++ {
		if words[i/64]>>(i%64)&1 != 0 {
			words[i/64] &^= 1 << (i % 64)
			stray = first + i
		}
	}
	return stray
}

// reportMap reports what is wrong with the map. c counts neither bits beyond the last block nor
// anything beyond the end of the file; checksums is the fault of the data checksums, or nil.
func (x *inspector) reportMap(c *mapSummary, short bool, mapSize int64, stray uint64,
	checksums *finding.Finding) {
	h := &x.Header
	sum, count := !h.HasMapCRC() || c.crc == h.MapCRC, !h.Clean || c.count == h.Owned
	grow, clear := NoRemedy, NoRemedy
	if h.Clean && sum && count {
		grow, clear = GrowMap, ClearBits
	}
	if !h.Clean && !short {
		// No checksum covers the map of an unclean head, but no reader uses bits beyond the last
		// block.
		clear = ClearBits
	}
	if checksums != nil && checksums.Remedy == NoRemedy {
		grow = NoRemedy
	}
	if short {
		x.addFinding(grow, x.paths.Map, "length of the map", fmt.Sprintf("at least %d bytes",
			h.length()), mapSize)
	}
	if stray != 0 {
		x.addFinding(clear, x.paths.Map, "bitmap", fmt.Sprintf("no bit beyond block %d, the last",
			h.Blocks()-1),
			fmt.Sprintf("a bit for block %d", stray))
	}
	switch {
	case !sum:
		x.addFinding(NoRemedy, x.paths.Map, "checksum of the map", hex32(h.MapCRC), hex32(c.crc))
	case !count:
		x.addFinding(NoRemedy, x.paths.Map, "number of owned blocks", h.Owned, c.count)
	case checksums != nil:
		x.Findings = append(x.Findings, checksums)
	}
}

// dataTruncated reports whether the data file is shorter than when it was made, and its size.
func (x *inspector) dataTruncated() (truncated bool, size int64, err error) {
	if x.data == nil {
		return true, 0, nil
	}
	size, err = x.data.Size()
	x.dataSize = x.Header.DataOffset + x.Header.Size
	return size < x.dataSize, size, err
}

// reportData reports whether the missing part of the data file was in use.
func (x *inspector) reportData(c *mapSummary, size int64) {
	h := &x.Header
	need := h.DataOffset + min(int64(c.end)*int64(h.BlockSize), h.Size)
	if c.end > 0 && size < need {
		x.addFinding(NoRemedy, x.paths.Data,
			fmt.Sprintf("length of the data (last owned block is %d)", c.end-1),
			fmt.Sprintf("at least %d bytes", need), size)
		return
	}
	x.addFinding(GrowData, x.paths.Data, "length of the data", fmt.Sprintf("%d bytes", x.dataSize),
		size)
}

// zeroPadded is a map file that continues with zeros behind its end.
type zeroPadded struct{ vfs.File }

func (f zeroPadded) ReadAt(p []byte, off int64) (int, error) {
	n, err := f.File.ReadAt(p, off)
	if err == io.EOF {
		clear(p[n:])
		return len(p), nil
	}
	return n, err
}
