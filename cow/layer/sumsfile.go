package layer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/google/uuid"

	"cowblk/cow/vfs"
)

// table is where a layer's data sums lie: behind its map, or in a file of their own.
type table struct {
	file vfs.File
	off  int64  // byte of file
	crc  uint32 // checksum of the table
}

// findTable finds the data sums of a layer whose map is open; nil: it has none.
func findTable(fsys vfs.FS, p Paths, h *Header, mapf vfs.File) (*table, error) {
	if h.HasSums() {
		return &table{mapf, h.MapSize(), h.SumsCRC}, nil
	}
	if h.State != Sealed || p.Sums == "" {
		return nil, nil
	}
	f, err := fsys.OpenFile(p.Sums, os.O_RDONLY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	t, err := readSumsFile(f, h)
	if err != nil || t == nil {
		f.Close()
		return nil, err
	}
	return t, nil
}

// Offsets of the fields of a sums file's header in bytes; see FORMAT.md.
const (
	offSumsMagic      = 0
	offSumsVersion    = 8
	offSumsTable      = 12
	offSumsMustRefuse = 16
	offSumsUUID       = 24
	offSumsSize       = 40
	offSumsBlockSize  = 48
	offSumsTableCRC   = 52
	offSumsReserved   = 56
)

const (
	sumsMagic   = "COWBLK\x00S"
	sumsVersion = 1
	// sumsTableAt is where the table begins in a sums file, in bytes.
	sumsTableAt = 4096
)

const adviceSums = "cowblk check --repair puts it right if the data proves how; else compare the data with a copy, and move this file away: who serves the layer next makes it again"

// sumsHeader is the header of a layer's sums file.
func sumsHeader(h *Header, crc uint32) (sector [SectorSize]byte) {
	le := binary.LittleEndian
	copy(sector[offSumsMagic:], sumsMagic)
	le.PutUint32(sector[offSumsVersion:], sumsVersion)
	le.PutUint32(sector[offSumsTable:], sumsTableAt)
	copy(sector[offSumsUUID:], h.UUID[:])
	le.PutUint64(sector[offSumsSize:], uint64(h.Size))
	le.PutUint32(sector[offSumsBlockSize:], h.BlockSize)
	le.PutUint32(sector[offSumsTableCRC:], crc)
	le.PutUint32(sector[offHeaderCRC:], crc32.Checksum(sector[:offHeaderCRC], castagnoli()))
	return sector
}

// readSumsFile reads and checks the header of a layer's sums file; nil: it was not
// finished. It returns both a table and an error if all that is wrong is the length.
func readSumsFile(f vfs.File, h *Header) (*table, error) {
	for attempt := 1; ; attempt++ {
		var sector [SectorSize]byte
		if _, err := f.ReadAt(sector[:], 0); isEOF(err) || err == nil && sector == [SectorSize]byte{} {
			return nil, nil
		} else if err != nil {
			return nil, err
		}
		crc, err := decodeSumsHeader(&sector, h)
		// Somebody may be writing it; see readHeader.
		if attempt < 3 && errors.Is(err, ErrDamaged) {
			continue
		}
		if err != nil {
			return nil, at(f.Name(), err)
		}
		size, err := f.Size()
		if err == nil && size < h.sumsFileEnd() {
			err = &Fault{Path: f.Name(), What: "length of the checksums of the data", Expected: fmt.Sprintf("%d bytes", h.sumsFileEnd()), Found: fmt.Sprint(size), Advice: adviceSums, Err: ErrDamaged}
		}
		return &table{f, sumsTableAt, crc}, err
	}
}

// sumsFileEnd is the length of the layer's sums file in bytes.
func (h *Header) sumsFileEnd() int64 { return sumsTableAt + int64(h.sumPages())*MapPageSize }

// decodeSumsHeader returns the checksum of the table.
func decodeSumsHeader(sector *[SectorSize]byte, h *Header) (crc uint32, err error) {
	le := binary.LittleEndian
	fault := func(what string, expected, found any, sentinel error) error {
		return &Fault{What: what, Expected: fmt.Sprint(expected), Found: fmt.Sprint(found), Advice: adviceSums, Err: sentinel}
	}
	if found := string(sector[offSumsMagic:][:len(sumsMagic)]); found != sumsMagic {
		return 0, fault("magic of the checksums of the data", fmt.Sprintf("%q", sumsMagic), fmt.Sprintf("%q", found), ErrDamaged)
	}
	if !checksumHolds(sector) {
		return 0, fault("checksum of the header of the checksums of the data", hex32(le.Uint32(sector[offHeaderCRC:])), "another one", ErrDamaged)
	}
	version, refuse := le.Uint32(sector[offSumsVersion:]), le.Uint64(sector[offSumsMustRefuse:])
	if version != sumsVersion || refuse != 0 {
		return 0, &Fault{What: "version and features of the checksums of the data", Expected: fmt.Sprintf("%d and 0", sumsVersion), Found: fmt.Sprintf("%d and %#x", version, refuse),
			Advice: adviceUpgrade, Err: ErrUnsupported}
	}
	if at := le.Uint32(sector[offSumsTable:]); at != sumsTableAt {
		return 0, fault("start of the table", sumsTableAt, at, ErrDamaged)
	}
	id := uuid.UUID(sector[offSumsUUID:][:16])
	size, block := le.Uint64(sector[offSumsSize:]), le.Uint32(sector[offSumsBlockSize:])
	if id != h.UUID || size != uint64(h.Size) || block != h.BlockSize {
		return 0, fault("layer that the checksums of the data are of", fmt.Sprintf("%v of %d bytes in blocks of %d", h.UUID, h.Size, h.BlockSize),
			fmt.Sprintf("%v of %d bytes in blocks of %d", id, size, block), ErrMismatch)
	}
	return le.Uint32(sector[offSumsTableCRC:]), nil
}

// createSumsFile opens a sums file for writing, and makes it, durably, if there is
// none.
func createSumsFile(fsys vfs.FS, path string) (vfs.File, error) {
	dir := filepath.Dir(path)
	if err := fsys.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	f, err := fsys.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := fsys.SyncDir(dir); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}
