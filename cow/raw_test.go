package cow

import (
	"bytes"
	"errors"
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
	if _, err := d.WriteAt(part, 512); err != nil {
		t.Fatal(err)
	}
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
	if _, err := d.Prepare(nil); !errors.Is(err, ErrSpec) {
		t.Errorf("promotion of a raw disk: %v", err)
	}
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
		if _, err := Open(Spec{Base: &BaseSpec{Path: path}, Raw: true}, Options{}); !errors.Is(err, ErrSpec) {
			t.Errorf("size %d: %v", size, err)
		}
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
		if _, err := open(!raw); !errors.Is(err, vfs.ErrImageLocked) {
			t.Errorf("raw %t, beside a disk on the same file: %v", !raw, err)
		}
		if second, err := open(false); !raw && err != nil {
			t.Errorf("a second disk on the same base: %v", err)
		} else if err == nil {
			second.Close()
		}
		test.Must(t, first.Close())
	}
}
