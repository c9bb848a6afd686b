package layer

import (
	"os"
	"path/filepath"
	"testing"

	"cowblk/cow/vfs"
)

// A head whose data file ends before the disk does, as another writer may leave it, has the full length once it is open
// for writing: a bit that is set for a hole behind the end would make the layer a damaged one. Where the data does not
// begin at the file's start, too. A reader changes nothing.
func TestShortDataIsLengthened(t *testing.T) {
	const size = 1 << 20
	for _, offset := range []int64{0, 64 << 10} {
		for _, length := range []int64{0, 4096, offset + size - 512} {
			dir := t.TempDir()
			p := Paths{Map: filepath.Join(dir, "map"), Data: filepath.Join(dir, "data"), DataOffset: offset}
			must(t, newHead(t, p, CreateParams{Size: size}).Close())
			must(t, os.Truncate(p.Data, length))
			for _, write := range []bool{false, true} {
				want := length
				if write {
					want = offset + size
				}
				l, err := Open(vfs.OS{}, p, OpenParams{Write: write})
				must(t, err)
				st, err := os.Stat(p.Data)
				must(t, err)
				if st.Size() != want {
					t.Errorf("offset %d, length %d, for writing %v: %d bytes, expected %d", offset, length, write, st.Size(), want)
				}
				must(t, l.Close())
			}
		}
	}
}
