package store

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"

	"cowblk/cow/qcow2"
)

// TestTableDataInUse: what a table names as the data of a new layer holds nothing, unless --force.
func TestTableDataInUse(t *testing.T) {
	const size = 4 << 20
	with := func(off int, what string) func(string) {
		return func(path string) {
			p := make([]byte, size)
			copy(p[off:], what)
			write(t, path, p)
		}
	}
	for _, c := range []struct {
		name  string
		make  func(path string)
		off   int // of the data, in sectors
		found string
	}{
		{"empty", func(string) {}, 0, ""},
		{"a hole", func(path string) { _ = os.Truncate(path, size) }, 0, ""},
		{"zeros", with(0, ""), 0, ""},
		{"text before the data", with(0, "text"), 8, ""},
		{"behind the data", with(9*512+tableSectors*512, "text"), 9, ""},
		{"text", with(100, "text"), 0, "at offset 100"},
		{"text at the end", with(tableSectors*512-4, "text"), 0, "at offset 32764"},
		{"text after an offset", with(5000, "text"), 8, "at offset 5000"},
		{"qcow2", with(0, qcow2.Magic+"\x00\x00\x00\x03"), 0, "qcow2"},
		{"qcow2 before the data", with(0, qcow2.Magic+"\x00\x00\x00\x03"), 64, "qcow2"},
		{"gzip", with(0, "\x1f\x8b\x08"), 0, "gzip"},
		{"a boot sector", with(510, "\x55\xaa"), 0, "partition table"},
		{"LVM", with(512, "LABELONE"), 0, "LVM"},
		{"a guest's LUKS before the data", with(0, "LUKS\xba\xbe"), 64, ""},
		{"LUKS", with(0, "LUKS\xba\xbe"), 0, "luks"},
		{"ext4", func(path string) {
			write(t, path, make([]byte, size))
			out, err := exec.Command("mkfs.ext4", "-q", "-F", path).CombinedOutput()
			if err != nil {
				t.Skipf("no mkfs.ext4 here: %v: %s", err, out)
			}
		}, 0, "ext4"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newStore(t)
			data, m := plainFile(t, 0), plainFile(t, 1<<20)
			c.make(data)
			o := CreateOptions{Table: tableOf(plainFile(t, 1<<20), 0, m, data, c.off)}
			_, err := s.Create(ctx, "d", o)
			if c.found == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), c.found) ||
				!strings.Contains(err.Error(), "--force") {
				t.Errorf("expected %v that names %q, found %v", ErrRefused, c.found, err)
			}
			if p, err := os.ReadFile(m); err != nil || !bytes.Equal(p, make([]byte, len(p))) {
				t.Error("the map has changed")
			}
			o.Force = true
			create(t, s, "d", o)
			if _, err := s.Remove(ctx, "d"); err != nil {
				t.Fatal(err)
			}
			o.Force = false
			create(t, s, "again", o) // the map is a layer now
		})
	}
}
