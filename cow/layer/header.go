package layer

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/uuid"

	"cowblk/cow/finding"
)

// State says whether a layer may be written. The values are those of the file.
type State uint32

const (
	Head   State = 1 // may be written
	Sealed State = 2 // never changes again
)

func (s State) String() string {
	switch s {
	case Head:
		return "head"
	case Sealed:
		return "sealed"
	default:
		return fmt.Sprintf("state %d", uint32(s))
	}
}

// Header is the content of the first sector of a map file.
type Header struct {
	Features Features
	UUID     uuid.UUID
	Parent   uuid.UUID // layer below; all zero: none, the layer lies on the base or on nothing

	Size       int64  // of the disk, bytes
	BlockSize  uint32 // bytes
	State      State
	Clean      bool   // head: closed in order, Owned is valid; always true when sealed
	Owned      uint64 // number of set bits; meaningful when Clean
	MapCRC     uint32 // of the bitmap, see FORMAT.md; valid if HasMapCRC
	DataOffset int64  // of block 0 in the data file, bytes

	Created  time.Time // to the nanosecond
	SealedAt time.Time // zero while a head

	Base     Fingerprint // zero: no base
	BaseSize int64       // bytes of the base that were fingerprinted

	ChecksumsCRC uint32 // of the table of data checksums; valid if HasChecksums

	// Of a head that is open or was not closed: where the bits are that are not in the map.
	// Generation 0: nowhere, every acknowledged bit was flushed before.
	Generation uint64 // random, of one opening
	Boot       bootID // run of the kernel
	SharedDir  string // directory of the shared map, in memory; see sharedPath
}

// HasMapCRC reports whether MapCRC is valid: in every sealed layer, and in a head that was closed
// by a program that keeps the checksum of heads too.
func (h Header) HasMapCRC() bool {
	return h.State == Sealed || h.Clean && h.Features.ClearOnOpen&featureHeadCRC != 0
}

// Features are the three feature words of a map.
type Features struct {
	MustRefuse  uint64 // a reader that does not know a set bit refuses the map
	MayIgnore   uint64 // may be ignored, and is kept
	ClearOnOpen uint64 // a writer clears the bits it does not know before its first change
}

const (
	formatVersion = 1

	// featureHeadCRC, in ClearOnOpen: the map checksum of a clean head is valid. A writer that does
	// not know it clears it with the other unknown bits, and so leaves no checksum that its changes
	// have made wrong.
	featureHeadCRC = 1 << 0

	// featureShared, in ClearOnOpen: Generation, Boot and SharedDir are valid. A writer that does
	// not know them clears the bit and so invalidates the shared map.
	featureShared = 1 << 1

	// featureDataChecksums, in MayIgnore: checksums of the data follow a sealed layer's map. A
	// reader that does not know them does not read there.
	featureDataChecksums = 1 << 0

	knownMustRefuse  = 0
	knownClearOnOpen = featureHeadCRC | featureShared

	flagClean  = 1 << 0
	knownFlags = flagClean
)

// Offsets of the header's fields in bytes, as in the table of FORMAT.md; a test compares the two.
// All fields are little endian.
const (
	offMagic        = 0
	offVersion      = 8
	offMapOffset    = 12
	offMustRefuse   = 16
	offMayIgnore    = 24
	offClearOnOpen  = 32
	offUUID         = 40
	offParent       = 56
	offSize         = 72
	offBlockSize    = 80
	offState        = 84
	offFlags        = 88
	offMapCRC       = 92
	offOwned        = 96
	offDataOffset   = 104
	offCreated      = 112
	offSealedAt     = 120
	offBaseSize     = 128
	offBase         = 136
	offChecksumsCRC = 168
	offGeneration   = 172
	offBoot         = 180
	offSharedDir    = 196
	offReserved     = 396
	offHeaderCRC    = 508
)

// Magic are the first bytes of a layer's map; see cow/FORMAT.md.
const Magic = "COWBLK\x00L"

// maxSharedDir is the length of the longest path of a shared map's directory, in bytes.
const maxSharedDir = offReserved - offSharedDir

func castagnoli() *crc32.Table { return crc32.MakeTable(crc32.Castagnoli) }

// encode writes h over the first sector of a map. It keeps the reserved bytes of sector: they may
// belong to a feature that may be ignored.
func (h *Header) encode(sector *[SectorSize]byte) {
	le := binary.LittleEndian
	copy(sector[offMagic:], Magic)
	le.PutUint32(sector[offVersion:], formatVersion)
	le.PutUint32(sector[offMapOffset:], MapOffset)
	le.PutUint64(sector[offMustRefuse:], h.Features.MustRefuse)
	le.PutUint64(sector[offMayIgnore:], h.Features.MayIgnore)
	le.PutUint64(sector[offClearOnOpen:], h.Features.ClearOnOpen)
	copy(sector[offUUID:], h.UUID[:])
	copy(sector[offParent:], h.Parent[:])
	le.PutUint64(sector[offSize:], uint64(h.Size))
	le.PutUint32(sector[offBlockSize:], h.BlockSize)
	le.PutUint32(sector[offState:], uint32(h.State))
	var flags uint32
	if h.Clean {
		flags |= flagClean
	}
	le.PutUint32(sector[offFlags:], flags)
	le.PutUint32(sector[offMapCRC:], h.MapCRC)
	le.PutUint64(sector[offOwned:], h.Owned)
	le.PutUint64(sector[offDataOffset:], uint64(h.DataOffset))
	le.PutUint64(sector[offCreated:], uint64(nanoseconds(h.Created)))
	le.PutUint64(sector[offSealedAt:], uint64(nanoseconds(h.SealedAt)))
	le.PutUint64(sector[offBaseSize:], uint64(h.BaseSize))
	copy(sector[offBase:], h.Base[:])
	le.PutUint32(sector[offChecksumsCRC:], h.ChecksumsCRC)
	le.PutUint64(sector[offGeneration:], h.Generation)
	copy(sector[offBoot:], h.Boot[:])
	clear(sector[offSharedDir:offReserved])
	copy(sector[offSharedDir:offReserved], h.SharedDir)
	le.PutUint32(sector[offHeaderCRC:], crc32.Checksum(sector[:offHeaderCRC], castagnoli()))
}

// decodeHeader checks and decodes the first sector of a map. Its errors are findings without a file
// and wrap ErrNotLayer, ErrUnsupported or ErrDamaged.
func decodeHeader(sector *[SectorSize]byte) (Header, error) {
	le := binary.LittleEndian
	if !bytes.Equal(sector[:len(Magic)], []byte(Magic)) {
		return Header{}, notLayer(sector)
	}
	if v := le.Uint32(sector[offVersion:]); v != formatVersion {
		return Header{}, finding.New(ErrUnsupported, "", "format version", "1", v, adviceUpgrade)
	}
	sum := crc32.Checksum(sector[:offHeaderCRC], castagnoli())
	if found := le.Uint32(sector[offHeaderCRC:]); found != sum {
		return Header{}, finding.New(ErrDamaged, "", "header checksum", hex32(sum), hex32(found),
			adviceRestore)
	}
	h := Header{
		Features: Features{
			MustRefuse:  le.Uint64(sector[offMustRefuse:]),
			MayIgnore:   le.Uint64(sector[offMayIgnore:]),
			ClearOnOpen: le.Uint64(sector[offClearOnOpen:]),
		},
		UUID:         uuid.UUID(sector[offUUID : offUUID+16]),
		Parent:       uuid.UUID(sector[offParent : offParent+16]),
		Size:         int64(le.Uint64(sector[offSize:])),
		BlockSize:    le.Uint32(sector[offBlockSize:]),
		State:        State(le.Uint32(sector[offState:])),
		Clean:        le.Uint32(sector[offFlags:])&flagClean != 0,
		MapCRC:       le.Uint32(sector[offMapCRC:]),
		Owned:        le.Uint64(sector[offOwned:]),
		DataOffset:   int64(le.Uint64(sector[offDataOffset:])),
		Created:      instant(int64(le.Uint64(sector[offCreated:]))),
		SealedAt:     instant(int64(le.Uint64(sector[offSealedAt:]))),
		BaseSize:     int64(le.Uint64(sector[offBaseSize:])),
		Base:         Fingerprint(sector[offBase : offBase+32]),
		ChecksumsCRC: le.Uint32(sector[offChecksumsCRC:]),
	}
	if h.Features.ClearOnOpen&featureShared != 0 {
		h.Generation = le.Uint64(sector[offGeneration:])
		h.Boot = bootID(sector[offBoot : offBoot+16])
		h.SharedDir = string(bytes.TrimRight(sector[offSharedDir:offReserved], "\x00"))
	}
	if unknown := h.Features.MustRefuse &^ knownMustRefuse; unknown != 0 {
		return Header{}, finding.New(ErrUnsupported, "", "must-refuse features",
			hex64(knownMustRefuse), hex64(h.Features.MustRefuse), adviceUpgrade)
	}
	if err := checkFields(&h, le.Uint32(sector[offMapOffset:]),
		le.Uint32(sector[offFlags:])); err != nil {
		return Header{}, finding.New(ErrDamaged, "", err.Error(), "", "", adviceRestore)
	}
	return h, nil
}

// checkFields refuses values that no writer of this version can have put under a valid checksum.
func checkFields(h *Header, mapOffset, flags uint32) error {
	if err := checkGeometry(h.Size, h.BlockSize); err != nil {
		return err
	}
	switch {
	case mapOffset != MapOffset:
		return fmt.Errorf("map offset: expected %d, found %d", MapOffset, mapOffset)
	case flags&^knownFlags != 0:
		return fmt.Errorf("flags: expected none but %#x, found %#x", knownFlags, flags)
	case h.State != Head && h.State != Sealed:
		return fmt.Errorf("state: expected 1 or 2, found %d", uint32(h.State))
	case h.State == Sealed && !h.Clean:
		return fmt.Errorf("flags: expected a sealed layer to be clean, found %#x", flags)
	case h.UUID == uuid.Nil:
		return fmt.Errorf("UUID: expected one, found none")
	case h.UUID == h.Parent:
		return fmt.Errorf("parent: expected another layer, found the layer's own UUID %v", h.UUID)
	case h.Owned > h.Blocks():
		return fmt.Errorf("owned blocks: expected at most %d, found %d", h.Blocks(), h.Owned)
	case h.DataOffset < 0 || h.DataOffset > MaxSize || h.DataOffset%SectorSize != 0:
		return fmt.Errorf("data offset: expected a multiple of 512 up to %d, found %d",
			int64(MaxSize), h.DataOffset)
	case h.Features.ClearOnOpen&featureShared != 0 && !h.sharedHolds():
		return fmt.Errorf("shared map: expected one of an open head, a generation and an absolute path, found generation %d and %q, %s", h.Generation, h.SharedDir, describe(h))
	case h.BaseSize < 0 || h.BaseSize > MaxSize:
		return fmt.Errorf("base size: expected 0 to %d bytes, found %d", int64(MaxSize), h.BaseSize)
	}
	return nil
}

func notLayer(sector *[SectorSize]byte) error {
	f := finding.New(ErrNotLayer, "", "magic", fmt.Sprintf("%q", Magic),
		fmt.Sprintf("%q", sector[:len(Magic)]), adviceFiles)
	if *sector == [SectorSize]byte{} {
		f.Found = "zeros: the map was never formatted"
	}
	return f
}

// nanoseconds and instant map the zero time to 0 and back.
func nanoseconds(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

func instant(ns int64) time.Time {
	if ns == 0 {
		return time.Time{}
	}
	return time.Unix(0, ns).UTC()
}

func hex32(v uint32) string { return fmt.Sprintf("%#08x", v) }
func hex64(v uint64) string { return fmt.Sprintf("%#x", v) }

// setShared makes the header of an open head name its shared map.
func (h *Header) setShared(generation uint64, boot bootID, dir string) {
	h.Features.ClearOnOpen |= featureShared
	h.Generation, h.Boot, h.SharedDir = generation, boot, dir
}

// clearShared removes the shared map's name: all bits are in the map.
func (h *Header) clearShared() {
	h.Features.ClearOnOpen &^= featureShared
	h.Generation, h.Boot, h.SharedDir = 0, bootID{}, ""
}

// sharedHolds checks the fields of featureShared.
func (h *Header) sharedHolds() bool {
	return h.State == Head && !h.Clean && h.Generation != 0 && filepath.IsAbs(h.SharedDir) &&
		filepath.Clean(h.SharedDir) == h.SharedDir && !strings.Contains(h.SharedDir, "\x00")
}

func describe(h *Header) string {
	if h.Clean && h.State == Head {
		return h.State.String() + ", closed cleanly"
	}
	return h.State.String()
}
