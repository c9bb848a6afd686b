package blk

import (
	"encoding/hex"
	"errors"
	"testing"
)

func TestSpace(t *testing.T) {
	c := Config{
		Sectors: 0x1122334455667788, SizeMax: 0x01020304, SegMax: 0x05060708,
		BlkSize: 4096, PhysExp: 3, MinIO: 0x0a0b, OptIO: 0x0c0d0e0f, Queues: 0x1011,
		MaxDiscardSectors: 0x12131415, MaxDiscardSeg: 0x16171819, DiscardAlign: 0x1a1b1c1d,
		MaxWriteZeroesSectors: 0x1e1f2021, MaxWriteZeroesSeg: 0x22232425, WriteZeroesMayUnmap: true,
	}
	space := c.Space(true)
	const want = "8877665544332211" + // capacity
		"04030201" + "08070605" + "00000000" + // size_max, seg_max, geometry
		"00100000" + "03" + "00" + "0b0a" + "0f0e0d0c" + // blk_size, topology
		"01" + "00" + "1110" + // writeback, unused, num_queues
		"15141312" + "19181716" + "1d1c1b1a" + // discard
		"21201f1e" + "25242322" + "01" + "000000" // write zeroes
	if got := hex.EncodeToString(space[:]); got != want {
		t.Errorf("space\n%s, expected\n%s", got, want)
	}

	space = (&Config{}).Space(false)
	const empty = "0000000000000000" + "00000000" + "00000000" + "00000000" +
		"00020000" + "00" + "00" + "0000" + "00000000" +
		"00" + "00" + "0100" +
		"00000000" + "01000000" + "00000000" +
		"00000000" + "01000000" + "00" + "000000"
	if got := hex.EncodeToString(space[:]); got != empty {
		t.Errorf("zero value's space\n%s, expected\n%s", got, empty)
	}
}

func TestFeatures(t *testing.T) {
	const always = 1<<6 | 1<<9 | 1<<10 | 1<<11
	for _, tc := range []struct {
		name string
		c    Config
		want uint64
	}{
		{"zero value", Config{}, always},
		{"one queue", Config{Queues: 1}, always},
		{"queues", Config{Queues: 2}, always | 1<<12},
		{"segments", Config{SegMax: 126, SizeMax: 1 << 20}, always | 1<<1 | 1<<2},
		{"discard", Config{MaxDiscardSectors: 1}, always | 1<<13},
		{"write zeroes", Config{MaxWriteZeroesSectors: 1}, always | 1<<14},
		{"read-only", Config{ReadOnly: true, MaxDiscardSectors: 1, MaxWriteZeroesSectors: 1},
			always | 1<<5},
	} {
		if got := tc.c.Features(); got != tc.want {
			t.Errorf("%s: %#x, expected %#x", tc.name, got, tc.want)
		}
	}
}

func TestConfigCheck(t *testing.T) {
	for _, tc := range []struct {
		name string
		c    Config
		ok   bool
	}{
		{"zero value", Config{}, true},
		{"largest", Config{Sectors: 1<<54 - 1, BlkSize: 1 << 16, ID: "12345678901234567890"}, true},
		{"too large", Config{Sectors: 1 << 54}, false},
		{"small block", Config{BlkSize: 256}, false},
		{"odd block", Config{BlkSize: 1536}, false},
		{"long ID", Config{ID: "123456789012345678901"}, false},
	} {
		if err := tc.c.Check(); (err == nil) != tc.ok || err != nil && !errors.Is(err, ErrConfig) {
			t.Errorf("%s: error %v", tc.name, err)
		}
	}
}
