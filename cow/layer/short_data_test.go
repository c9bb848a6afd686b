package layer

import (
	"os"
	"path/filepath"
	"testing"

	"cowblk/cow/vfs"
)

// A head whose data file is shorter than the disk, as another writer may leave it, has the full
// length once it is open for writing: a bit set over a hole beyond the end would make the layer
// damaged. Also with a data offset. A reader changes nothing.
func TestShortDataIsExtended(t *testing.T) {
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
