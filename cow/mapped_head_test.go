package cow_test

import (
	"io/fs"
	"os"
	"strings"
	"sync/atomic"
	"testing"

	"cowblk/cow"
	"cowblk/cow/cowtest"
	"cowblk/cow/vfs"
	"cowblk/internal/test"
)

// readCounter counts the system calls that read data files.
type readCounter struct {
	vfs.OS
	reads atomic.Int64
}

func (x *readCounter) OpenFile(name string, flag int, perm fs.FileMode) (vfs.File, error) {
	f, err := x.OS.OpenFile(name, flag, perm)
	if err != nil || !strings.HasSuffix(name, "data") {
		return f, err
	}
	return &countedFile{f, x}, nil
}

type countedFile struct {
	vfs.File
	x *readCounter
}

func (f *countedFile) PreadvNowait(iov []vfs.Iovec, off int64) (int, error) {
	f.x.reads.Add(1)
	return f.File.PreadvNowait(iov, off)
}

// What the guest has written is read without a system call, at every block size: by itself, and
// where it alternates with other layers. A discarded block is read with one.
func TestReadsOfWrittenBlocksNeedNoSystemCall(t *testing.T) {
	for _, blockSize := range []int64{512, 4096, 64 << 10} {
		x := &readCounter{}
		const size = 4 << 20
		rig, err := cowtest.NewRig(t.TempDir(), x, cowtest.Shape{Size: size,
			BlockSize: uint32(blockSize)})
		test.Must(t, err)
		t.Cleanup(func() { rig.Close() })
		ch := asyncChannel(t, rig.Disk)
		do := func(op cow.Op, off int64, p []byte) {
			t.Helper()
			ch.Submit(&cow.Request{Op: op, Offset: off, Length: int64(len(p)), Data: [][]byte{p},
				Ranges: []cow.Range{{Offset: off, Length: int64(len(p))}}})
			test.Must(t, waitCompletions(ch, 1))
		}
		step := 2 * max(blockSize, 4096)
		content := make([]byte, size)
		write := func(from int64, b byte) {
			for off := from; off < size; off += step {
				p := fill(b, int(step/2))
				copy(content[off:], p)
				do(cow.OpWrite, off, p)
			}
		}
		write(0, 'a')
		write(step/2, 'b')
		sealed(t, promote(t, rig))
		got := make([]byte, size)
		do(cow.OpRead, 0, got) // marks the sealed layer's pages
		write(step/2, 'c')
		before := x.reads.Load()
		do(cow.OpRead, 0, got)
		if n := x.reads.Load() - before; n != 0 || string(got) != string(content) {
			t.Errorf("blocks of %d: %d system calls, right content: %t", blockSize, n,
				string(got) == string(content))
		}
		do(cow.OpDiscard, step/2, content[step/2:step])
		clear(content[step/2 : step])
		do(cow.OpRead, 0, got)
		if n := x.reads.Load() - before; n == 0 || string(got) != string(content) {
			t.Errorf("blocks of %d, after a discard: %d system calls, right content: %t", blockSize,
				n, string(got) == string(content))
		}
	}
}

// A head that is cut underneath is an error of each read, and no more than that.
func TestHeadCutUnderneath(t *testing.T) {
	rig, err := cowtest.NewRig(t.TempDir(), vfs.OS{}, cowtest.Shape{Size: 1 << 20,
		BlockSize: 4096})
	test.Must(t, err)
	t.Cleanup(func() { rig.Close() })
	ch := asyncChannel(t, rig.Disk)
	read := func(off int64) error {
		r := &cow.Request{Op: cow.OpRead, Offset: off, Length: 8192,
			Data: [][]byte{make([]byte, 8192)}}
		ch.Submit(r)
		test.Must(t, waitCompletions(ch, 1))
		return r.Err
	}
	write(t, rig.Disk, 'a', 0, 1<<20)
	test.Must(t, read(0))
	test.Must(t, os.Truncate(rig.Spec.Layers[0].Data, 4096))
	for range 3 {
		test.ErrorIs(t, read(0), cow.ErrTruncated)
		test.ErrorIs(t, read(512<<10), cow.ErrTruncated)
	}
	want(t, rig.Disk, 'a', 0, 4096)
	write(t, rig.Disk, 'b', 4096, 1<<20-4096)
	test.Must(t, read(0))
	want(t, rig.Disk, 'b', 512<<10, 8192)
}
