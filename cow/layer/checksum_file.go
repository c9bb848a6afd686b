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

	"cowblk/cow/finding"
	"cowblk/cow/vfs"
)

// checksumTable is where a layer's data checksums lie: behind its map, or in a file of their own.
type checksumTable struct {
	file vfs.File
	off  int64  // byte of file
	crc  uint32 // checksum of the table itself
}

// findChecksumTable finds the data checksums of a layer whose map is open; nil: it has none.
func findChecksumTable(fsys vfs.FS, p Paths, h *Header, mapf vfs.File) (*checksumTable, error) {
	if h.HasChecksums() {
		return &checksumTable{mapf, h.MapSize(), h.ChecksumsCRC}, nil
	}
	if h.State != Sealed || p.Checksums == "" {
		return nil, nil
	}
	f, err := fsys.OpenFile(p.Checksums, os.O_RDONLY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	t, err := readChecksumFile(f, h)
	if err != nil || t == nil {
		f.Close()
		return nil, err
	}
	return t, nil
}

// Offsets in bytes of the header fields of a checksum file; see FORMAT.md.
const (
	offChecksumMagic      = 0
	offChecksumVersion    = 8
	offChecksumTable      = 12
	offChecksumMustRefuse = 16
	offChecksumUUID       = 24
	offChecksumSize       = 40
	offChecksumBlockSize  = 48
	offChecksumTableCRC   = 52
	offChecksumReserved   = 56
)

const (
	checksumMagic   = "COWBLK\x00S"
	checksumVersion = 1
	// checksumTableOffset is the offset of the table in a checksum file, in bytes.
	checksumTableOffset = 4096
)

const adviceChecksums = "cowblk check --repair puts it right if the data proves how; otherwise compare the data with a copy and move this file away: the next process that serves the layer computes it again"

// encodeChecksumHeader returns the header of a layer's checksum file.
func encodeChecksumHeader(h *Header, crc uint32) (sector [SectorSize]byte) {
	le := binary.LittleEndian
	copy(sector[offChecksumMagic:], checksumMagic)
	le.PutUint32(sector[offChecksumVersion:], checksumVersion)
	le.PutUint32(sector[offChecksumTable:], checksumTableOffset)
	copy(sector[offChecksumUUID:], h.UUID[:])
	le.PutUint64(sector[offChecksumSize:], uint64(h.Size))
	le.PutUint32(sector[offChecksumBlockSize:], h.BlockSize)
	le.PutUint32(sector[offChecksumTableCRC:], crc)
	le.PutUint32(sector[offHeaderCRC:], crc32.Checksum(sector[:offHeaderCRC], castagnoli()))
	return sector
}

// readChecksumFile reads and checks the header of a layer's checksum file; nil: the file is
// unfinished. It returns both a table and an error if only the length is wrong.
func readChecksumFile(f vfs.File, h *Header) (*checksumTable, error) {
	for attempt := 1; ; attempt++ {
		var sector [SectorSize]byte
		if _, err := f.ReadAt(sector[:], 0); isEOF(err) || err == nil &&
			sector == [SectorSize]byte{} {
			return nil, nil
		} else if err != nil {
			return nil, err
		}
		crc, err := decodeChecksumHeader(&sector, h)
		// Another process may be writing it; see readHeader.
		if attempt < 3 && errors.Is(err, ErrDamaged) {
			continue
		}
		if err != nil {
			return nil, withPath(f.Name(), err)
		}
		size, err := f.Size()
		if err == nil && size < h.checksumFileEnd() {
			err = finding.New(ErrDamaged, f.Name(), "length of the checksums of the data",
				fmt.Sprintf("%d bytes", h.checksumFileEnd()), size, adviceChecksums)
		}
		return &checksumTable{f, checksumTableOffset, crc}, err
	}
}

// checksumFileEnd returns the length of the layer's checksum file in bytes.
func (h *Header) checksumFileEnd() int64 {
	return checksumTableOffset + int64(h.checksumPages())*MapPageSize
}

// decodeChecksumHeader checks the header and returns the checksum of the table.
func decodeChecksumHeader(sector *[SectorSize]byte, h *Header) (crc uint32, err error) {
	le := binary.LittleEndian
	fault := func(what string, expected, found any, sentinel error) error {
		return finding.New(sentinel, "", what, expected, found, adviceChecksums)
	}
	if found := string(sector[offChecksumMagic:][:len(checksumMagic)]); found != checksumMagic {
		return 0, fault("magic of the checksums of the data", fmt.Sprintf("%q", checksumMagic),
			fmt.Sprintf("%q", found), ErrDamaged)
	}
	if !checksumHolds(sector) {
		return 0, fault("checksum of the header of the checksums of the data",
			hex32(le.Uint32(sector[offHeaderCRC:])), "another one", ErrDamaged)
	}
	version, refuse := le.Uint32(sector[offChecksumVersion:]),
		le.Uint64(sector[offChecksumMustRefuse:])
	if version != checksumVersion || refuse != 0 {
		return 0, finding.New(ErrUnsupported, "",
			"version and features of the checksums of the data",
			fmt.Sprintf("%d and 0", checksumVersion), fmt.Sprintf("%d and %#x", version, refuse),
			adviceUpgrade)
	}
	if at := le.Uint32(sector[offChecksumTable:]); at != checksumTableOffset {
		return 0, fault("start of the table", checksumTableOffset, at, ErrDamaged)
	}
	id := uuid.UUID(sector[offChecksumUUID:][:16])
	size, block := le.Uint64(sector[offChecksumSize:]), le.Uint32(sector[offChecksumBlockSize:])
	if id != h.UUID || size != uint64(h.Size) || block != h.BlockSize {
		return 0, fault("layer that the checksums of the data are of",
			fmt.Sprintf("%v of %d bytes in blocks of %d", h.UUID, h.Size, h.BlockSize),
			fmt.Sprintf("%v of %d bytes in blocks of %d", id, size, block), ErrMismatch)
	}
	return le.Uint32(sector[offChecksumTableCRC:]), nil
}

// createChecksumFile opens a checksum file for writing and creates it, durably, if it does not
// exist.
func createChecksumFile(fsys vfs.FS, path string) (vfs.File, error) {
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
