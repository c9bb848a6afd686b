package layer

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"cowblk/cow/vfs"
)

// Remedy is what Repair can do about a finding without guessing: what comes out
// is proven by a checksum or a count, or means nothing to any reader.
type Remedy int

const (
	NoRemedy         Remedy = iota
	RestoreHeader           // its own checksum proves what the header was
	GrowMap                 // no bit was in the part that is missing
	ClearBits               // no block belongs to them
	GrowData                // no owned block was in the part that is missing
	RestoreChecksums        // computed anew, they have the checksum that the header gives, or that of the table
)

// String says what is done, for a person.
func (r Remedy) String() string {
	switch r {
	case RestoreHeader:
		return "write the header as its checksum proves that it was"
	case GrowMap:
		return "extend the map with zeros: its checksum or count proves that no bit is lost"
	case ClearBits:
		return "clear the bits beyond the last block"
	case GrowData:
		return "extend the data file to its full length: no owned block is lost"
	case RestoreChecksums:
		return "compute the checksums of the data anew: what is left of them proves that they are the same"
	default:
		return "nothing"
	}
}

// Finding is one thing that is wrong with a layer.
type Finding struct {
	*Fault
	Remedy Remedy
}

// InspectParams say how closely Inspect looks. The zero value reads header and
// lengths, and the map of a layer that was not closed in order.
type InspectParams struct {
	Known Known
	// Map reads the map of every layer.
	Map bool
	// Data, if not nil, has all of the data read and compared with its checksums,
	// where the layer has them, and is told after each piece how many bytes of the
	// data file are behind it. Its error ends Inspect.
	Data func(done, total int64) error
}

// Inspection is what Inspect found.
type Inspection struct {
	// Header is zero if nothing sound or provable was found. It is the restored
	// one where RestoreHeader is among the remedies.
	Header       Header
	Findings     []Finding // in the order in which Repair goes about them
	HasChecksums bool      // the layer is sealed and has checksums of its data, sound or not
	MapRead      bool
	Owned        uint64 // blocks: counted if MapRead, else as the header says
}

// Inspect looks at a layer without changing it or stopping at the first thing
// that is wrong. What it finds is what makes Open refuse the layer, and besides
// a data file that has lost its unused end. A layer without findings need not be
// the one that is expected in its place: compare Header.
//
// It holds a shared lock on the map meanwhile. Errors: ErrInUse, that of
// InspectParams.Data, the operating system's.
func Inspect(fsys vfs.FS, p Paths, o InspectParams) (*Inspection, error) {
	x := &inspector{fs: fsys, flag: os.O_RDONLY, paths: p, params: o}
	defer x.close()
	if err := x.open(false); err != nil {
		return nil, fmt.Errorf("inspect layer: %w", err)
	}
	if err := x.inspect(); err != nil {
		return nil, fmt.Errorf("inspect layer: %w", err)
	}
	return &x.Inspection, nil
}

// inspector is an inspection under way, with what a repair needs of it.
type inspector struct {
	Inspection
	fs        vfs.FS
	flag      int // to open files with
	paths     Paths
	params    InspectParams
	mapf      vfs.File // nil: missing
	data      vfs.File // nil: missing
	checksums vfs.File // of the data, in a file of their own; nil: none

	sector       [SectorSize]byte     // as it is, or as it can be restored
	table        *checksumTable       // of data sums; goes on with zeros; nil: none
	badHeader    *Fault               // what is wrong with the header of sums
	badChecksums bool                 // the table is not what its checksum says, or has none
	lastPage     [wordsPerPage]uint64 // of the map, without the bits beyond the last block
	dataSize     int64                // that the data file shall have
}

func (x *inspector) close() {
	for _, f := range []vfs.File{x.data, x.mapf, x.checksums} {
		if f != nil {
			f.Close()
		}
	}
}

func (x *inspector) addFinding(r Remedy, what, expected, found, advice string, file vfs.File, sentinel error) {
	f := &Fault{Path: x.paths.Map, What: what, Expected: expected, Found: found, Advice: advice, Err: sentinel}
	if file != nil {
		f.Path = file.Name()
	}
	x.Findings = append(x.Findings, Finding{f, r})
}

// open opens the files and locks the map. One that is not there is a finding.
func (x *inspector) open(exclusive bool) error {
	for _, f := range []struct {
		what, name string
		file       *vfs.File
	}{{"map", x.paths.Map, &x.mapf}, {"data", x.paths.Data, &x.data}} {
		file, err := x.fs.OpenFile(f.name, x.flag, 0)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			x.addFinding(NoRemedy, f.what, "a file", "none", adviceRestore, nil, ErrDamaged)
			x.Findings[len(x.Findings)-1].Path = f.name
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
	var fault *Fault
	if errors.As(err, &fault) {
		sector, h, ok := restoreHeader(x.sector, x.paths, x.params.Known)
		if !ok {
			x.Findings = append(x.Findings, Finding{fault, NoRemedy})
			return nil
		}
		x.Findings = append(x.Findings, Finding{fault, RestoreHeader})
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

// inspectMap checks lengths and, if that is asked for or needed, the bitmap.
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
	stray := uint64(0) // a block beyond the last whose bit is set
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

// clearTail clears the bits from bit number n of words on, and returns first plus the
// number of the last one of them that was set, or 0.
func clearTail(words []uint64, n, first uint64) (stray uint64) {
	for i := n; i < uint64(len(words))*64; i++ {
		if words[i/64]>>(i%64)&1 != 0 {
			words[i/64] &^= 1 << (i % 64)
			stray = first + i
		}
	}
	return stray
}

// reportMap says what is wrong with the map, given what is in it: c counts
// neither bits beyond the last block nor anything beyond the end of the file; sums
// is what is wrong with the checksums of the data, or nil.
func (x *inspector) reportMap(c *mapSummary, short bool, mapSize int64, stray uint64, checksums *Finding) {
	h := &x.Header
	sum, count := !h.HasMapCRC() || c.crc == h.MapCRC, !h.Clean || c.count == h.Owned
	grow, clear := NoRemedy, NoRemedy
	if h.Clean && sum && count {
		grow, clear = GrowMap, ClearBits
	}
	if !h.Clean && !short {
		// Nothing has recorded what the map was, but no reader looks there.
		clear = ClearBits
	}
	if checksums != nil && checksums.Remedy == NoRemedy {
		grow = NoRemedy
	}
	if short {
		x.addFinding(grow, "length of the map", fmt.Sprintf("at least %d bytes", h.length()), fmt.Sprint(mapSize), adviceRestore, x.mapf, ErrDamaged)
	}
	if stray != 0 {
		x.addFinding(clear, "bitmap", fmt.Sprintf("no bit beyond block %d, the last", h.Blocks()-1), fmt.Sprintf("a bit for block %d", stray), adviceRestore, x.mapf, ErrDamaged)
	}
	switch {
	case !sum:
		x.addFinding(NoRemedy, "checksum of the map", hex32(h.MapCRC), hex32(c.crc), adviceRestore, x.mapf, ErrDamaged)
	case !count:
		x.addFinding(NoRemedy, "number of owned blocks", fmt.Sprint(h.Owned), fmt.Sprint(c.count), adviceRestore, x.mapf, ErrDamaged)
	case checksums != nil:
		x.Findings = append(x.Findings, *checksums)
	}
}

// dataTruncated reports whether the data file is shorter than it was made, and its
// size.
func (x *inspector) dataTruncated() (truncated bool, size int64, err error) {
	if x.data == nil {
		return true, 0, nil
	}
	size, err = x.data.Size()
	x.dataSize = x.Header.DataOffset + x.Header.Size
	return size < x.dataSize, size, err
}

// reportData looks whether what the data file has lost was in use.
func (x *inspector) reportData(c *mapSummary, size int64) {
	h := &x.Header
	need := h.DataOffset + min(int64(c.end)*int64(h.BlockSize), h.Size)
	if c.end > 0 && size < need {
		x.addFinding(NoRemedy, fmt.Sprintf("length of the data (last owned block is %d)", c.end-1), fmt.Sprintf("at least %d bytes", need), fmt.Sprint(size),
			adviceRestore, x.data, ErrDamaged)
		return
	}
	x.addFinding(GrowData, "length of the data", fmt.Sprintf("%d bytes", x.dataSize), fmt.Sprint(size), "", x.data, ErrDamaged)
}

// zeroPadded is a map file that goes on with zeros behind its end.
type zeroPadded struct{ vfs.File }

func (f zeroPadded) ReadAt(p []byte, off int64) (int, error) {
	n, err := f.File.ReadAt(p, off)
	if err == io.EOF {
		clear(p[n:])
		return len(p), nil
	}
	return n, err
}
