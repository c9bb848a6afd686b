package layer

import (
	"bytes"
	"encoding/hex"
	"errors"
	"hash/crc32"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"cowblk/cow/finding"
)

func sampleHeader() Header {
	h := Header{
		Features:     Features{MayIgnore: 0x8000000000000001, ClearOnOpen: 4},
		UUID:         uuid.MustParse("00112233-4455-6677-8899-aabbccddeeff"),
		Parent:       uuid.MustParse("01020304-0506-0708-090a-0b0c0d0e0f10"),
		Size:         10<<30 + 512,
		BlockSize:    4096,
		State:        Sealed,
		Clean:        true,
		Owned:        77,
		MapCRC:       0xdeadbeef,
		DataOffset:   1 << 20,
		Created:      time.Unix(1164585600, 1).UTC(),
		SealedAt:     time.Unix(1164672000, 2).UTC(),
		BaseSize:     8 << 30,
		ChecksumsCRC: 0xfeedf00d,
	}
	for i := range h.Base {
		h.Base[i] = byte(i + 1)
	}
	return h
}

// golden is the format: it changes only with the version. goldenCRC was computed by other means,
// bit by bit.
const goldenCRC = "b9229e2e"

const golden = "" +
	"434f57424c4b004c" + "01000000" + "00100000" +
	"0000000000000000" + "0100000000000080" + "0400000000000000" +
	"00112233445566778899aabbccddeeff" + "0102030405060708090a0b0c0d0e0f10" +
	"0002008002000000" + "00100000" + "02000000" + "01000000" + "efbeadde" +
	"4d00000000000000" + "0000100000000000" +
	"010089d66e702910" + "0200d86703bf2910" + // 1164585600 s + 1 ns, 1164672000 s + 2 ns
	"0000000002000000" +
	"0102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f20" + "0df0edfe"

func TestHeaderGolden(t *testing.T) {
	h := sampleHeader()
	var sector [SectorSize]byte
	h.encode(&sector)
	if got := hex.EncodeToString(sector[:offGeneration]); got != golden {
		t.Errorf("header:\n got %s\nwant %s", got, golden)
	}
	if !bytes.Equal(sector[offGeneration:offHeaderCRC], make([]byte, offHeaderCRC-offGeneration)) {
		t.Error("reserved bytes are not zero")
	}
	if got, want := hex.EncodeToString(sector[offHeaderCRC:]), goldenCRC; got != want {
		t.Errorf("header checksum: got %s, want %s", got, want)
	}
	back, err := decodeHeader(&sector)
	if err != nil || back != h {
		t.Errorf("decoded:\n got %+v, %v\nwant %+v", back, err, h)
	}
}

// The fields of an open head that has a shared map; the checksum was computed as above.
func TestHeaderGoldenShared(t *testing.T) {
	h := sampleHeader()
	h.State, h.Clean, h.Owned, h.MapCRC, h.SealedAt, h.ChecksumsCRC, h.Features.ClearOnOpen = Head,
		false, 0, 0, time.Time{}, 0, 0
	h.setShared(0x1122334455667788, bootID{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15},
		"/run/cowblk/unflushed")
	var sector [SectorSize]byte
	sector[offSharedDir+50] = 9 // of a longer one
	h.encode(&sector)
	const want = "8877665544332211" + "000102030405060708090a0b0c0d0e0f" +
		"2f72756e2f636f77626c6b2f756e666c757368656400"
	if got := hex.EncodeToString(sector[offGeneration : offGeneration+len(want)/2]); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if got := hex.EncodeToString(sector[offHeaderCRC:]); got != "ce11c498" {
		t.Errorf("header checksum: got %s", got)
	}
	if back, err := decodeHeader(&sector); err != nil || back != h {
		t.Errorf("decoded:\n got %+v, %v\nwant %+v", back, err, h)
	}
}

// The check value of the checksum in FORMAT.md.
func TestCRCIsCastagnoli(t *testing.T) {
	if got := crc32.Checksum([]byte("123456789"), castagnoli()); got != 0xe3069283 {
		t.Errorf("got %#x, want 0xe3069283", got)
	}
}

func TestDecodeHeaderRefuses(t *testing.T) {
	field := func(off int, b ...byte) func(*[SectorSize]byte) {
		return func(s *[SectorSize]byte) { copy(s[off:], b) }
	}
	for _, c := range []struct {
		name   string
		change func(*[SectorSize]byte)
		resum  bool // with a valid checksum
		want   error
		text   string
	}{
		{"zeros", func(s *[SectorSize]byte) { *s = [SectorSize]byte{} }, false, ErrNotLayer,
			"never formatted"},
		{"magic", field(offMagic, 'Q'), true, ErrNotLayer,
			`expected "COWBLK\x00L", found "QOWBLK\x00L"`},
		{"version", field(offVersion, 2), true, ErrUnsupported, "expected 1, found 2"},
		{"must refuse", field(offMustRefuse+7, 0x80), true, ErrUnsupported, "0x8000000000000000"},
		{"flipped bit", field(offUUID, 1), false, ErrDamaged, "header checksum"},
		{"flipped reserved bit", field(offReserved+100, 1), false, ErrDamaged, "header checksum"},
		{"map offset", field(offMapOffset, 1), true, ErrDamaged,
			"map offset: expected 4096, found 4097"},
		{"no UUID", field(offUUID, make([]byte, 16)...), true, ErrDamaged, "UUID"},
		{"own parent", func(s *[SectorSize]byte) { copy(s[offParent:offParent+16], s[offUUID:]) },
			true, ErrDamaged, "parent"},
		{"size 0", field(offSize, make([]byte, 8)...), true, ErrDamaged, "size"},
		{"size negative", field(offSize+7, 0xff), true, ErrDamaged, "size"},
		{"size 513", field(offSize, 1), true, ErrDamaged, "multiple of 512"},
		{"block size 0", field(offBlockSize, 0, 0, 0, 0), true, ErrDamaged, "block size"},
		{"block size 256", field(offBlockSize, 0, 1, 0, 0), true, ErrDamaged, "block size"},
		{"block size 3072", field(offBlockSize, 0, 12, 0, 0), true, ErrDamaged, "block size"},
		{"block size 128 KiB", field(offBlockSize, 0, 0, 2, 0), true, ErrDamaged, "block size"},
		{"state 0", field(offState, 0), true, ErrDamaged, "state"},
		{"state 3", field(offState, 3), true, ErrDamaged, "state"},
		{"flags", field(offFlags, 3), true, ErrDamaged, "flags"},
		{"sealed and not clean", field(offFlags, 0), true, ErrDamaged, "clean"},
		{"owned", field(offOwned+7, 1), true, ErrDamaged, "owned blocks"},
		{"data offset", field(offDataOffset, 1), true, ErrDamaged, "data offset"},
		{"data offset negative", field(offDataOffset+7, 0x80), true, ErrDamaged, "data offset"},
		{"base size", field(offBaseSize+7, 0x80), true, ErrDamaged, "base size"},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := sampleHeader()
			var sector [SectorSize]byte
			h.encode(&sector)
			c.change(&sector)
			if c.resum {
				putChecksum(&sector)
			}
			_, err := decodeHeader(&sector)
			if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.text) {
				t.Errorf("got %v, want %v with %q", err, c.want, c.text)
			}
		})
	}
}

// Bytes of a feature that may be ignored are kept by a change of the header.
func TestEncodeKeepsReservedBytes(t *testing.T) {
	h := sampleHeader()
	var sector [SectorSize]byte
	sector[offReserved] = 9
	h.encode(&sector)
	if sector[offReserved] != 9 {
		t.Error("a reserved byte was overwritten")
	}
	if _, err := decodeHeader(&sector); err != nil {
		t.Error(err)
	}
}

// The tables in FORMAT.md have every field at the offset of the encoders.
func TestFormatDocument(t *testing.T) {
	doc := readFile(t, "../FORMAT.md")
	header, sums, ok := strings.Cut(string(doc), "### Checksum file")
	if !ok {
		t.Fatal("FORMAT.md has no section \"Checksum file\"")
	}
	documented(t, header, map[string]int{
		"magic": offMagic, "version": offVersion, "map_offset": offMapOffset,
		"must_refuse": offMustRefuse, "may_ignore": offMayIgnore,
		"clear_on_open": offClearOnOpen, "generation": offGeneration, "boot": offBoot,
		"shared_dir": offSharedDir, "uuid": offUUID, "parent": offParent, "size": offSize,
		"block_size": offBlockSize, "state": offState,
		"flags": offFlags, "map_crc": offMapCRC, "owned": offOwned, "data_offset": offDataOffset,
		"created": offCreated, "sealed_at": offSealedAt,
		"base_size": offBaseSize, "base": offBase, "sums_crc": offChecksumsCRC,
		"reserved": offReserved, "header_crc": offHeaderCRC,
	})
	documented(t, sums, map[string]int{
		"magic": offChecksumMagic, "version": offChecksumVersion, "table_offset": offChecksumTable,
		"must_refuse": offChecksumMustRefuse, "uuid": offChecksumUUID,
		"size": offChecksumSize, "block_size": offChecksumBlockSize,
		"sums_crc": offChecksumTableCRC, "reserved": offChecksumReserved,
		"header_crc": offHeaderCRC,
	})
}

// documented compares a table of fields with their offsets in bytes.
func documented(t *testing.T, doc string, want map[string]int) {
	t.Helper()
	end := 0
	for _, row := range regexp.MustCompile(
		"(?m)^\\| (\\d+) \\| (\\d+) \\| `(\\w+)` \\|").FindAllStringSubmatch(doc, -1) {
		off, _ := strconv.Atoi(row[1])
		size, _ := strconv.Atoi(row[2])
		if at, ok := want[row[3]]; !ok || at != off {
			t.Errorf("field %s: FORMAT.md says offset %d, the encoder %d (known: %v)", row[3], off,
				at, ok)
		}
		if off != end {
			t.Errorf("field %s starts at %d, the one before it ends at %d", row[3], off, end)
		}
		end = off + size
		delete(want, row[3])
	}
	if end != SectorSize || len(want) != 0 {
		t.Errorf("the table ends at %d, want %d; missing: %v", end, SectorSize, want)
	}
}

func putChecksum(sector *[SectorSize]byte) {
	sum := crc32.Checksum(sector[:offHeaderCRC], castagnoli())
	sector[508], sector[509], sector[510], sector[511] = byte(sum), byte(sum>>8), byte(sum>>16),
		byte(sum>>24)
}

// FuzzDecodeHeader decodes sectors with a valid checksum: what is accepted must be within bounds
// and encode to the same.
func FuzzDecodeHeader(f *testing.F) {
	h := sampleHeader()
	var sector [SectorSize]byte
	h.encode(&sector)
	f.Add(sector[:])
	h.State, h.Clean, h.SealedAt, h.Parent = Head, false, time.Time{}, uuid.Nil
	h.encode(&sector)
	f.Add(sector[:])
	f.Add([]byte(Magic))
	f.Fuzz(func(t *testing.T, p []byte) {
		var sector [SectorSize]byte
		copy(sector[:], p)
		putChecksum(&sector)
		h, err := decodeHeader(&sector)
		if err != nil {
			var fault *finding.Finding
			if !errors.As(err, &fault) {
				t.Fatalf("not a Fault: %v", err)
			}
			return
		}
		if h.Size <= 0 || h.MapSize() <= 0 || h.Owned > h.Blocks() || h.DataOffset+h.Size <= 0 {
			t.Fatalf("accepted: %+v", h)
		}
		again := sector
		h.encode(&again)
		if again != sector {
			t.Fatalf("%+v is encoded differently", h)
		}
	})
}
