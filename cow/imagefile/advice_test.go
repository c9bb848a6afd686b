package imagefile

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"

	"cowblk/cow/vfs"
	"cowblk/internal/test"
)

// An advised name is accepted by the file system.
func TestFreshPathFits(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{strings.Repeat("x", 255), strings.Repeat("é", 127) + "x",
		strings.Repeat("x", 251) + ".raw", strings.Repeat("日", 85)} {
		path := filepath.Join(dir, name)
		for range 3 {
			fresh := unusedPath(vfs.OS{}, path, ".new", ".qcow2")
			if !utf8.ValidString(fresh) || filepath.Dir(fresh) != dir ||
				!bytes.HasSuffix([]byte(fresh), []byte(".qcow2")) {
				t.Errorf("fresh name %q of %q", fresh, name)
			}
			f, err := os.OpenFile(fresh, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
			test.Must(t, err)
			f.Close()
		}
	}
}
