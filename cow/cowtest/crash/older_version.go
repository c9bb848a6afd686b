package crash

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	mathbits "math/bits"
	"os"
	"path"

	"cowblk/cow"
	"cowblk/cow/cowtest"
	"cowblk/cow/layer"
	"cowblk/cow/vfs"
)

// Header fields of a map that a version before shared maps changes (FORMAT.md).
const (
	headerClearOnOpen = 32
	headerFlags       = 88
	headerMapCRC      = 92
	headerOwned       = 96
	headerCRC         = 508
	flagClean         = 1
	featureHeadCRC    = 1
)

// olderHead is a head as a process of such a version has it open.
type olderHead struct {
	mapf, data vfs.File
	header     layer.Header
	sector     [512]byte
	bitmap     []byte // whole pages
}

// older opens a disk as a version before shared maps does. That version ignores the bits that a
// killed process has left in memory, and the feature that names them. It drops pages of blocks
// without a bit in the map from the page cache. It may write a block and flush it. Then it closes
// the disk in order, or is killed.
func (pl *player) older(s Step) error {
	if pl.m.FreePages() >= 0 { // this model does not cover that version on a full file system
		return nil
	}
	if pl.open[s.Name] != nil || len(pl.m.Files(path.Join(storeDir, "tmp"))) > 0 {
		return nil
	}
	p := pl.m.Process(nil)
	defer p.Kill()
	other, err := openStore(p)
	if err != nil {
		return err
	}
	m, err := other.Disk(s.Name)
	if err != nil {
		if pl.refused(s, err) {
			return nil
		}
		return err
	}
	for _, l := range m.Sealed() {
		h, err := layer.ReadHeader(p, path.Join(storeDir, l.Map))
		if err != nil {
			return err
		}
		if h.State != layer.Sealed {
			return nil // that version would seal it: the next step does
		}
	}
	seen, err := pl.manifests()
	if err != nil {
		return err
	}
	pl.m.Mark(reliedOn(s.String(), seen))
	o, err := openOlder(p, path.Join(storeDir, m.Head().Map), path.Join(storeDir, m.Head().Data))
	if err != nil {
		return err
	}
	pl.m.Mark(unflushedIgnored(s.Name))
	if err := o.begin(); err != nil {
		return err
	}
	if pl.rng.IntN(2) == 0 {
		block := pl.rng.Int64N(int64(o.header.Blocks()))
		off := block * int64(o.header.BlockSize)
		buf := make([]byte, min(int64(o.header.BlockSize), m.Size-off))
		id := pl.next
		pl.next++
		cowtest.Stamp(buf, off/cowtest.SectorSize, id)
		r := cow.Range{Offset: off, Length: int64(len(buf))}
		n, ended := began(s.Name, id, fmt.Sprintf("%s: write %d+%d", s, r.Offset, r.Length),
			[][2]int64{{r.Offset, r.Length}})
		pl.m.Mark(n)
		if err := o.write(block, buf, off); err != nil {
			return err
		}
		pl.m.Mark(ended(true, true))
	}
	if s.Arg == "close" {
		if err := o.close(); err != nil {
			return err
		}
	}
	pl.out.count(s.Verb + ", " + s.Arg)
	return nil
}

func openOlder(fsys vfs.FS, mapName, dataName string) (*olderHead, error) {
	h, err := layer.ReadHeader(fsys, mapName)
	o := &olderHead{header: h}
	if err == nil {
		o.mapf, err = fsys.OpenFile(mapName, os.O_RDWR, 0)
	}
	if err == nil {
		err = o.mapf.Lock(true)
	}
	if err == nil {
		_, err = o.mapf.ReadAt(o.sector[:], 0)
	}
	if err == nil {
		o.data, err = fsys.OpenFile(dataName, os.O_RDWR, 0)
	}
	if err == nil {
		o.bitmap = make([]byte, h.MapPages()*layer.MapPageSize)
		if _, err = o.mapf.ReadAt(o.bitmap, layer.MapOffset); err == io.EOF {
			err = nil
		}
	}
	return o, err
}

func (o *olderHead) owns(block int64) bool { return o.bitmap[block/8]>>(block%8)&1 != 0 }

// begin opens the head. Data that may not be on the device is dropped, and the header loses clean
// and unknown features.
func (o *olderHead) begin() error {
	if !o.header.Clean {
		size := int64(o.header.BlockSize)
		for b := range int64(o.header.Blocks()) {
			if o.owns(b) {
				continue
			}
			if err := o.data.PunchHole(b*size, size); err != nil {
				return err
			}
		}
	}
	return o.writeHeader(false)
}

// writeHeader writes the header durably.
func (o *olderHead) writeHeader(clean bool) error {
	le := binary.LittleEndian
	le.PutUint64(o.sector[headerClearOnOpen:], 0)
	le.PutUint32(o.sector[headerFlags:], 0)
	le.PutUint32(o.sector[headerMapCRC:], 0)
	le.PutUint64(o.sector[headerOwned:], 0)
	if clean {
		owned := 0
		for _, b := range o.bitmap {
			owned += mathbits.OnesCount8(b)
		}
		le.PutUint64(o.sector[headerClearOnOpen:], featureHeadCRC)
		le.PutUint32(o.sector[headerFlags:], flagClean)
		le.PutUint32(o.sector[headerMapCRC:], o.checksum())
		le.PutUint64(o.sector[headerOwned:], uint64(owned))
	}
	le.PutUint32(o.sector[headerCRC:], crc32.Checksum(o.sector[:headerCRC],
		crc32.MakeTable(crc32.Castagnoli)))
	if _, err := o.mapf.WriteAt(o.sector[:], 0); err != nil {
		return err
	}
	return o.mapf.Datasync()
}

// checksum is the map checksum of FORMAT.md.
func (o *olderHead) checksum() (crc uint32) {
	table := crc32.MakeTable(crc32.Castagnoli)
	for page := 0; page*layer.MapPageSize < len(o.bitmap); page++ {
		p := o.bitmap[page*layer.MapPageSize:][:layer.MapPageSize]
		if !allZero(p) {
			crc = crc32.Update(crc, table, binary.LittleEndian.AppendUint64(nil, uint64(page)))
			crc = crc32.Update(crc, table, p)
		}
	}
	return crc
}

func allZero(p []byte) bool {
	for _, b := range p {
		if b != 0 {
			return false
		}
	}
	return true
}

// write writes a block and flushes: the data, then the bits of the whole map.
func (o *olderHead) write(block int64, p []byte, off int64) error {
	if _, err := o.data.WriteAt(p, off); err != nil {
		return err
	}
	o.bitmap[block/8] |= 1 << (block % 8)
	return o.flush()
}

func (o *olderHead) flush() error {
	if err := o.data.Datasync(); err != nil {
		return err
	}
	if _, err := o.mapf.WriteAt(o.bitmap, layer.MapOffset); err != nil {
		return err
	}
	return o.mapf.Datasync()
}

func (o *olderHead) close() error {
	if err := o.flush(); err != nil {
		return err
	}
	return o.writeHeader(true)
}
