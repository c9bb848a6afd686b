package cow

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"cowblk/cow/vfs"
	"cowblk/internal/test"
)

// A raw disk is its file: exactly what was written, discarded and flushed is in it.
func TestRawDiskIsItsFile(t *testing.T) {
	const size = 1<<20 + 512
	path := filepath.Join(t.TempDir(), "raw")
	want := bytes.Repeat([]byte{7}, size)
	test.Must(t, os.WriteFile(path, want, 0o600))
	d, err := Open(Spec{Base: &BaseSpec{Path: path}, Raw: true}, Options{})
	test.Must(t, err)
	if d.Size() != size || d.Depth() != 0 || d.ReadOnly() {
		t.Errorf("size %d, depth %d, read-only %t", d.Size(), d.Depth(), d.ReadOnly())
	}
	part := bytes.Repeat([]byte{9}, 1536)
	test.Must(t, test.Err(d.WriteAt(part, 512)))
	copy(want[512:], part)
	ch, err := d.NewChannel()
	test.Must(t, err)
	for _, r := range []*Request{
		{Op: OpDiscard, Ranges: []Range{{Offset: 8192, Length: 16384}}},
		{Op: OpWriteZeroes, Ranges: []Range{{Offset: 65536 + 512, Length: 1024}}},
	} {
		ch.Submit(r)
		if got := ch.Completed(nil); len(got) != 1 || r.Err != nil {
			t.Fatalf("%v: %v", r.Op, r.Err)
		}
	}
	clear(want[8192 : 8192+16384])
	clear(want[65536+512 : 65536+512+1024])
	test.Must(t, ch.Close())
	test.Must(t, d.Flush())
	test.ErrorIs(t, test.Err(d.Prepare(nil)), ErrSpec, "promotion of a raw disk")
	if _, err := Open(Spec{Base: &BaseSpec{Path: path}, Raw: true}, Options{}); err == nil {
		t.Error("the file of a raw disk was opened twice")
	}
	test.Must(t, d.Close())
	got, err := os.ReadFile(path)
	test.Must(t, err)
	if !bytes.Equal(got, want) {
		t.Error("the file differs from what was written")
	}
}

func TestRawDiskRefusesOddSizes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "raw")
	for _, size := range []int64{0, 511, 1025} {
		test.Must(t, os.WriteFile(path, make([]byte, size), 0o600))
		test.ErrorIs(t, test.Err(Open(Spec{Base: &BaseSpec{Path: path}, Raw: true}, Options{})),
			ErrSpec, size)
	}
}

// The file of a raw disk cannot be a base at the same time, in either order; two disks may share a
// base.
func TestRawDiskAndBaseExclude(t *testing.T) {
	path := filepath.Join(t.TempDir(), "raw")
	test.Must(t, os.WriteFile(path, make([]byte, 1<<20), 0o600))
	open := func(raw bool) (*Disk, error) {
		return Open(Spec{Base: &BaseSpec{Path: path}, Raw: raw, ReadOnly: !raw}, Options{})
	}
	for _, raw := range []bool{false, true} {
		first, err := open(raw)
		test.Must(t, err)
		test.ErrorIs(t, test.Err(open(!raw)), vfs.ErrImageLocked, !raw)
		if second, err := open(false); !raw && err != nil {
			t.Errorf("a second disk on the same base: %v", err)
		} else if err == nil {
			second.Close()
		}
		test.Must(t, first.Close())
	}
}
