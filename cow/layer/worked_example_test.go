package layer

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"cowblk/cow/vfs"
	"cowblk/internal/test"
)

// hexdump formats a file like "hexdump -C" without its column of characters: rows of 16 bytes, "*"
// for rows equal to the row before.
func hexdump(p []byte) string {
	var b strings.Builder
	var last []byte
	starred := false
	for off := 0; off < len(p); off += 16 {
		row := p[off:min(off+16, len(p))]
		if last != nil && bytes.Equal(row, last) {
			if !starred {
				b.WriteString("*\n")
			}
			starred = true
			continue
		}
		last, starred = row, false
		fmt.Fprintf(&b, "%08x  % x\n", off, row)
	}
	fmt.Fprintf(&b, "%08x\n", len(p))
	return b.String()
}

// formatDocument is cow/FORMAT.md.
func formatDocument(t *testing.T) string {
	t.Helper()
	doc := readFile(t, "../FORMAT.md")
	return string(doc)
}

// TestWorkedExample: the layer of FORMAT.md's example is, byte for byte, the one that this package
// makes.
func TestWorkedExample(t *testing.T) {
	dir := t.TempDir()
	p := Paths{Map: filepath.Join(dir, "map"), Data: filepath.Join(dir, "data")}
	c := CreateParams{
		UUID:   uuid.MustParse("00112233-4455-6677-8899-aabbccddeeff"),
		Parent: uuid.MustParse("0f0e0d0c-0b0a-0908-0706-050403020100"),
		Size:   9*512 + 4096, BlockSize: 4096, Created: time.Unix(1164628800, 0),
	}
	l := newHead(t, p, c)
	test.Must(t, test.Err(l.Data().WriteAt([]byte{1}, 0)))
	test.Must(t, test.Err(l.Data().WriteAt([]byte{1}, 2*4096)))
	l.Bitmap().Set(0, 1)
	l.Bitmap().Set(2, 1)
	test.Must(t, l.Seal(time.Unix(1164628801, 0)))
	test.Must(t, l.AddChecksums(nil))
	test.Must(t, l.Close())
	content := readFile(t, p.Map)
	if dump := hexdump(content); !strings.Contains(formatDocument(t), "```\n"+dump+"```\n") {
		t.Errorf("the example in FORMAT.md, \"A worked example\", is expected to be\n%s", dump)
	}
}

// TestVectors checks the test values in FORMAT.md.
func TestVectors(t *testing.T) {
	doc := formatDocument(t)
	want := func(what, pattern, value string) {
		t.Helper()
		m := regexp.MustCompile(pattern).FindStringSubmatch(doc)
		if m == nil {
			t.Errorf("%s: FORMAT.md has no text like %q", what, pattern)
		} else if m[1] != value {
			t.Errorf("%s: FORMAT.md says %s, the code makes it %s", what, m[1], value)
		}
	}
	base := make([]byte, 0, 1024)
	for range 4 {
		for b := range 256 {
			base = append(base, byte(b))
		}
	}
	path := filepath.Join(t.TempDir(), "base")
	test.Must(t, os.WriteFile(path, base, 0o600))
	f, err := vfs.OS{}.OpenFile(path, os.O_RDONLY, 0)
	test.Must(t, err)
	defer f.Close()
	print, err := ComputeFingerprint(f, 0, int64(len(base)))
	test.Must(t, err)
	want("fingerprint", "four times the bytes `00` to `ff` \\| `([0-9a-f]{64})`", print.String())

	page := make([]byte, MapPageSize)
	page[0] = 1
	want("map checksum", "only bit 0 set \\| `([0-9a-f]{8})`",
		fmt.Sprintf("%08x", addRawPageCRC(0, 0, page)))
	page[0], page[MapPageSize-1] = 0, 0x80
	want("map checksum of the second page", "only bit 65,535 set \\| `([0-9a-f]{8})`",
		fmt.Sprintf("%08x", addRawPageCRC(0, 1, page)))

	for n, text := range map[int]string{4096: "4,096", 512: "512"} {
		unit := make([]byte, n)
		unit[0] = 1
		want("data checksum of "+text, "byte `01` and zeros, "+text+" bytes \\| `([0-9a-f]{8})`",
			fmt.Sprintf("%08x", DataChecksum(unit)))
	}
	want("CRC-32C", `of the bytes "123456789" it is `+"`([0-9a-f]{8})`",
		hex.EncodeToString([]byte{0xe3, 0x06, 0x92, 0x83}))
}
