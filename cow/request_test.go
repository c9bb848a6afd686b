package cow_test

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"cowblk/cow"
	"cowblk/cow/cowtest"
	"cowblk/cow/layer"
	"cowblk/internal/test"
)

func TestRequestsOutsideTheDiskAreRefused(t *testing.T) {
	const size = 1<<20 + 512
	rig, _ := newRig(t, cowtest.Shape{Size: size, BlockSize: 4096})
	buf := [][]byte{make([]byte, 1024)}
	const huge = 1<<63 - 512
	for _, r := range []cow.Range{{-512, 512}, {size, 512}, {size - 512, 1024}, {0, -512},
		{huge, 512}, {512, huge}, {huge, huge}} {
		for _, op := range []cow.Op{cow.OpRead, cow.OpWrite, cow.OpDiscard, cow.OpWriteZeroes} {
			req := &cow.Request{Op: op, Offset: r.Offset, Length: r.Length, Data: buf,
				Ranges: []cow.Range{{0, 512}, r}}
			test.ErrorIs(t, do(rig.Disk, req), cow.ErrRange, op, r)
		}
	}
	for _, op := range []cow.Op{cow.OpRead, cow.OpWrite} {
		test.ErrorIs(t, do(rig.Disk, &cow.Request{Op: op, Length: 1536, Data: buf}), cow.ErrRange,
			op)
	}
	test.ErrorIs(t, do(rig.Disk, &cow.Request{Op: 77}), cow.ErrOp, "unknown operation")
	if n := rig.Disk.Stats().HeadBlocks; n != 0 {
		t.Errorf("refused requests made the head own %d blocks", n)
	}
}

// Scatter lists longer than one system call takes, of pieces of every size.
func TestLongScatterLists(t *testing.T) {
	rig, _ := newRig(t, cowtest.Shape{Size: 8 << 20, BlockSize: 4096})
	pattern := make([]byte, 3<<20)
	cowtest.Stamp(pattern, 0, 7)
	for _, piece := range []int{1, 512, 700, 4096} {
		total := min(len(pattern), piece*5000/512*512)
		cut := func(p []byte) (segs [][]byte) {
			for len(p) > 0 {
				n := min(piece, len(p))
				segs = append(segs, p[:n:n], nil)
				p = p[n:]
			}
			return segs
		}
		back := make([]byte, total)
		for _, r := range []*cow.Request{
			// first, edges copied up
			{Op: cow.OpWrite, Offset: 512, Length: int64(total), Data: cut(pattern[:total])},
			// again
			{Op: cow.OpWrite, Offset: 512, Length: int64(total), Data: cut(pattern[:total])},
			{Op: cow.OpRead, Offset: 512, Length: int64(total), Data: cut(back)},
		} {
			test.Must(t, do(rig.Disk, r))
		}
		if string(back) != string(pattern[:total]) {
			t.Errorf("pieces of %d bytes: read something else than was written", piece)
		}
	}
}

func TestDiscardAndWriteZeroes(t *testing.T) {
	// The last block is partial: 512 bytes.
	rig, _ := newRig(t, cowtest.Shape{Size: 10*4096 + 512, BlockSize: 4096})
	d := rig.Disk
	zero := func(op cow.Op, off, n int64) {
		t.Helper()
		test.Must(t, do(d, &cow.Request{Op: op, Ranges: []cow.Range{{off, n}}}))
	}
	zero(cow.OpDiscard, 0, 10*4096+512)
	if n := d.Stats().HeadBlocks; n != 0 {
		t.Errorf("discard of what is zero already: the head owns %d blocks", n)
	}
	write(t, d, 'a', 0, 10*4096+512)
	zero(cow.OpDiscard, 512, 8192) // one whole block: 1
	want(t, d, 'a', 0, 4096)
	want(t, d, 0, 4096, 4096)
	want(t, d, 'a', 8192, 4096)
	zero(cow.OpDiscard, 512, 1024) // none
	want(t, d, 'a', 0, 4096)
	zero(cow.OpDiscard, 9*4096+512, 4096) // only the partial last one
	want(t, d, 'a', 9*4096, 4096)
	want(t, d, 0, 10*4096, 512)
	sealed(t, promote(t, rig))
	zero(cow.OpWriteZeroes, 8192+512, 8192) // edges copied up
	want(t, d, 'a', 8192, 512)
	want(t, d, 0, 8192+512, 8192)
	want(t, d, 'a', 16384+512, 4096-512)
	zero(cow.OpDiscard, 5*4096, 4096) // hides what is below
	want(t, d, 0, 5*4096, 4096)
	test.Must(t, rig.Reopen())
	want(t, rig.Disk, 0, 5*4096, 4096)
	want(t, rig.Disk, 0, 8192+512, 8192)
}

// Memory that has lost its backing fails the request, whether the kernel or the engine accesses it.
func TestBufferWithoutBacking(t *testing.T) {
	rig, _ := newRig(t, cowtest.Shape{Size: 1 << 20, BlockSize: 4096})
	fd, err := unix.MemfdCreate("guest", 0)
	test.Must(t, err)
	defer unix.Close(fd)
	test.Must(t, unix.Ftruncate(fd, 8192))
	mem, err := unix.Mmap(fd, 0, 8192, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	test.Must(t, err)
	defer unix.Munmap(mem)
	test.Must(t, unix.Ftruncate(fd, 0))
	req := func(op cow.Op) *cow.Request {
		return &cow.Request{Op: op, Length: 4096, Data: [][]byte{mem[:4096]}}
	}
	// zeros: no file is read
	if err := do(rig.Disk, req(cow.OpRead)); !errors.Is(err, cow.ErrFault) {
		t.Errorf("read of zeros: expected ErrFault, found %v", err)
	}
	test.ErrorIs(t, do(rig.Disk, req(cow.OpWrite)), unix.EFAULT)
	write(t, rig.Disk, 'a', 0, 4096)
	test.ErrorIs(t, do(rig.Disk, req(cow.OpRead)), unix.EFAULT)
	want(t, rig.Disk, 'a', 0, 4096)
	sealed(t, promote(t, rig)) // no pin is left
}

func TestPromotionRefused(t *testing.T) {
	rig, x := newRig(t, cowtest.Shape{Size: 1 << 20, BlockSize: 4096})
	head := rig.Disk.Layers()[0]
	create := func(name string, c layer.CreateParams) *layer.Layer {
		l, err := layer.CreateHead(x, layer.Paths{Map: rig.Dir + "/" + name + ".map",
			Data: rig.Dir + "/" + name + ".data"}, c)
		test.Must(t, err)
		t.Cleanup(func() { l.Close() })
		return l
	}
	for name, c := range map[string]layer.CreateParams{
		"orphan": {Size: 1 << 20, BlockSize: 4096},
		"small":  {Size: 1 << 19, BlockSize: 4096, Parent: head.UUID},
		"blocks": {Size: 1 << 20, BlockSize: 512, Parent: head.UUID},
		"base":   {Size: 1 << 20, BlockSize: 4096, Parent: head.UUID, Base: layer.Fingerprint{1}},
	} {
		test.ErrorIs(t, test.Err(rig.Disk.Promote(create(name, c))), cow.ErrMismatch, name)
	}
	used := create("used", layer.CreateParams{Size: 1 << 20, BlockSize: 4096, Parent: head.UUID})
	used.Bitmap().Set(3, 1)
	test.ErrorIs(t, test.Err(rig.Disk.Promote(used)), cow.ErrMismatch)

	good := create("good", layer.CreateParams{Size: 1 << 20, BlockSize: 4096, Parent: head.UUID})
	p, err := rig.Disk.Prepare(good)
	test.Must(t, err)
	test.ErrorIs(t, test.Err(rig.Disk.Prepare(good)), cow.ErrPromoting)
	p.Cancel()
	if <-p.Done(); !errors.Is(p.Err(), cow.ErrCancelled) {
		t.Errorf("cancelled: %v", p.Err())
	}
	test.ErrorIs(t, cow.Swap(p), cow.ErrCancelled, "swap of a cancelled promotion")
	if rig.Disk.Depth() != 1 {
		t.Errorf("depth %d after refused promotions", rig.Disk.Depth())
	}
}
