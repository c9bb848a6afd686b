package vhost

import (
	"encoding/binary"
	"fmt"

	"cowblk/vhost/guest"
)

// MaxTableRegions is the largest number of regions in one SET_MEM_TABLE; more are shared one by one
// with ADD_MEM_REG.
const MaxTableRegions = 8

// MaxConfigSize is the size in bytes of the window on the configuration space that GET_CONFIG and
// SET_CONFIG can reach (VHOST_USER_MAX_CONFIG_SIZE).
const MaxConfigSize = 256

// Sizes of payloads, in bytes.
const (
	sizeU64          = 8
	sizeVringState   = 8
	sizeVringAddr    = 40
	sizeRegion       = 32
	sizeMemHeader    = 8
	sizeMemReg       = 8 + sizeRegion
	sizeConfigHeader = 12
	maxPayload       = sizeConfigHeader + MaxConfigSize

	sizeInflightPacked = 20
	sizeInflight       = 24 // with C's padding, as QEMU sends it
)

// MaxPayload is the size in bytes of the largest payload of a supported message.
const MaxPayload = maxPayload

func wrongSize(what string, got, want int) error {
	return fmt.Errorf("%s of %d bytes, expected %d: %w", what, got, want, ErrProtocol)
}

// AppendU64 appends a u64 payload to b.
func AppendU64(b []byte, v uint64) []byte { return binary.LittleEndian.AppendUint64(b, v) }

// DecodeU64 decodes a u64 payload.
func DecodeU64(b []byte) (uint64, error) {
	if len(b) != sizeU64 {
		return 0, wrongSize("u64", len(b), sizeU64)
	}
	return binary.LittleEndian.Uint64(b), nil
}

// VringState is a "vring state description": a ring and a number, whose meaning depends on the
// message (size, base, enable).
type VringState struct {
	Index, Num uint32
}

// Append appends the payload to b.
func (s VringState) Append(b []byte) []byte {
	b = binary.LittleEndian.AppendUint32(b, s.Index)
	return binary.LittleEndian.AppendUint32(b, s.Num)
}

// DecodeVringState decodes a vring state description.
func DecodeVringState(b []byte) (VringState, error) {
	if len(b) != sizeVringState {
		return VringState{}, wrongSize("ring state", len(b), sizeVringState)
	}
	return VringState{
		Index: binary.LittleEndian.Uint32(b),
		Num:   binary.LittleEndian.Uint32(b[4:]),
	}, nil
}

// VringFlagLog is VHOST_VRING_F_LOG: writes to the used ring are logged.
const VringFlagLog uint32 = 1

// VringAddr is a "vring address description". Desc, Used and Avail are user addresses, Log is a
// guest address.
type VringAddr struct {
	Index, Flags           uint32
	Desc, Used, Avail, Log uint64
}

// Append appends the payload to b.
func (a VringAddr) Append(b []byte) []byte {
	b = binary.LittleEndian.AppendUint32(b, a.Index)
	b = binary.LittleEndian.AppendUint32(b, a.Flags)
	for _, v := range [...]uint64{a.Desc, a.Used, a.Avail, a.Log} {
		b = binary.LittleEndian.AppendUint64(b, v)
	}
	return b
}

// DecodeVringAddr decodes a vring address description.
func DecodeVringAddr(b []byte) (VringAddr, error) {
	if len(b) != sizeVringAddr {
		return VringAddr{}, wrongSize("ring addresses", len(b), sizeVringAddr)
	}
	return VringAddr{
		Index: binary.LittleEndian.Uint32(b),
		Flags: binary.LittleEndian.Uint32(b[4:]),
		Desc:  binary.LittleEndian.Uint64(b[8:]),
		Used:  binary.LittleEndian.Uint64(b[16:]),
		Avail: binary.LittleEndian.Uint64(b[24:]),
		Log:   binary.LittleEndian.Uint64(b[32:]),
	}, nil
}

// Bits of the u64 of SET_VRING_KICK, SET_VRING_CALL and SET_VRING_ERR.
const (
	vringIndexMask uint64 = 0xff
	// VringNoFD says that no descriptor comes with the message.
	VringNoFD uint64 = 1 << 8
)

// DecodeVringFD decodes the payload of SET_VRING_KICK, SET_VRING_CALL and SET_VRING_ERR: the ring,
// and whether the message has a descriptor. The upper bits are reserved and ignored.
func DecodeVringFD(b []byte) (index int, hasFD bool, err error) {
	v, err := DecodeU64(b)
	if err != nil {
		return 0, false, err
	}
	return int(v & vringIndexMask), v&VringNoFD == 0, nil
}

func appendRegion(b []byte, r guest.RegionDesc) []byte {
	for _, v := range [...]uint64{r.GuestAddr, r.Size, r.UserAddr, r.MmapOffset} {
		b = binary.LittleEndian.AppendUint64(b, v)
	}
	return b
}

func decodeRegion(b []byte) guest.RegionDesc {
	return guest.RegionDesc{
		GuestAddr:  binary.LittleEndian.Uint64(b),
		Size:       binary.LittleEndian.Uint64(b[8:]),
		UserAddr:   binary.LittleEndian.Uint64(b[16:]),
		MmapOffset: binary.LittleEndian.Uint64(b[24:]),
	}
}

// AppendMemTable appends the payload of SET_MEM_TABLE ("multiple memory regions description") to b.
func AppendMemTable(b []byte, regions []guest.RegionDesc) []byte {
	b = binary.LittleEndian.AppendUint32(b, uint32(len(regions)))
	b = binary.LittleEndian.AppendUint32(b, 0)
	for _, r := range regions {
		b = appendRegion(b, r)
	}
	return b
}

// DecodeMemTable decodes the payload of SET_MEM_TABLE without checking the regions, which the
// memory table does. Payloads longer than the announced regions need are accepted up to the largest
// table, because some front-ends always send the whole structure.
func DecodeMemTable(b []byte) ([]guest.RegionDesc, error) {
	if len(b) < sizeMemHeader {
		return nil, wrongSize("memory table", len(b), sizeMemHeader)
	}
	n := binary.LittleEndian.Uint32(b)
	if n > MaxTableRegions {
		return nil, fmt.Errorf("memory table of %d regions, expected at most %d: %w", n,
			MaxTableRegions, ErrProtocol)
	}
	if want := sizeMemHeader + int(n)*sizeRegion; len(b) < want ||
		len(b) > sizeMemHeader+MaxTableRegions*sizeRegion {
		return nil, wrongSize(fmt.Sprintf("memory table of %d regions", n), len(b), want)
	}
	regions := make([]guest.RegionDesc, n)
	for i := range regions {
		regions[i] = decodeRegion(b[sizeMemHeader+i*sizeRegion:])
	}
	return regions, nil
}

// AppendMemReg appends the payload of ADD_MEM_REG and REM_MEM_REG ("single memory region
// description") to b.
func AppendMemReg(b []byte, r guest.RegionDesc) []byte {
	return appendRegion(AppendU64(b, 0), r)
}

// DecodeMemReg decodes the payload of ADD_MEM_REG and REM_MEM_REG.
func DecodeMemReg(b []byte) (guest.RegionDesc, error) {
	if len(b) != sizeMemReg {
		return guest.RegionDesc{}, wrongSize("memory region", len(b), sizeMemReg)
	}
	return decodeRegion(b[8:]), nil
}

// Origin of a change of the configuration space (flags of SET_CONFIG).
const (
	ConfigFrontend  uint32 = 0 // the guest: writable fields only
	ConfigMigration uint32 = 1 // live migration
)

// ConfigSpace is a "virtio device config space" payload: a window of Size bytes at Offset. Data
// aliases the decoded payload.
type ConfigSpace struct {
	Offset, Size, Flags uint32
	Data                []byte
}

// Append appends the payload to b.
func (c ConfigSpace) Append(b []byte) []byte {
	b = binary.LittleEndian.AppendUint32(b, c.Offset)
	b = binary.LittleEndian.AppendUint32(b, c.Size)
	b = binary.LittleEndian.AppendUint32(b, c.Flags)
	return append(b, c.Data...)
}

// DecodeConfigSpace decodes a config space payload. The window must lie within the first 256 bytes;
// Data has Size bytes, or none if the sender omitted them, which GET_CONFIG tolerates.
func DecodeConfigSpace(b []byte) (ConfigSpace, error) {
	if len(b) < sizeConfigHeader {
		return ConfigSpace{}, wrongSize("config space", len(b), sizeConfigHeader)
	}
	c := ConfigSpace{
		Offset: binary.LittleEndian.Uint32(b),
		Size:   binary.LittleEndian.Uint32(b[4:]),
		Flags:  binary.LittleEndian.Uint32(b[8:]),
		Data:   b[sizeConfigHeader:],
	}
	if c.Offset > MaxConfigSize || c.Size > MaxConfigSize-c.Offset {
		return ConfigSpace{}, fmt.Errorf(
			"config space: %d bytes at offset %d, expected to end within %d: %w",
			c.Size, c.Offset, MaxConfigSize, ErrProtocol)
	}
	if len(c.Data) != 0 && len(c.Data) != int(c.Size) {
		return ConfigSpace{}, fmt.Errorf("config space: %d bytes follow, expected %d: %w",
			len(c.Data), c.Size, ErrProtocol)
	}
	return c, nil
}
