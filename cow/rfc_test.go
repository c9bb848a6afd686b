package cow_test

import (
	"os"
	"testing"

	"cowblk/cow"
	"cowblk/cow/cowtest"
	"cowblk/cow/cowtest/faultfs"
	"cowblk/cow/layer"
	"cowblk/cow/vfs"
	"cowblk/internal/test"
)

// bit reads a block's bit from a layer's map file, without the engine.
func bit(t testing.TB, rig *cowtest.Rig, layerIndex int, block int64) bool {
	t.Helper()
	f, err := os.Open(rig.Spec.Layers[layerIndex].Map)
	test.Must(t, err)
	defer f.Close()
	var b [1]byte
	test.Must(t, test.Err(f.ReadAt(b[:], layer.MapOffset+block/8)))
	return b[0]>>(block%8)&1 != 0
}

// The five mistakes of the dm-cow RFC (linux-kernel, 27 November 2006), each of which loses data or
// refuses service there.

// RFC mistake 1: the map's byte offset drops bits, so that eight sectors share one bit.
func TestRFCEightSectorsShareOneBit(t *testing.T) {
	rig, _ := newRig(t, cowtest.Shape{Size: 1 << 20, BlockSize: 512, BaseSize: 1 << 20})
	const sector = 8*5 + 3
	write(t, rig.Disk, 'w', sector*512, 512)
	test.Must(t, rig.Disk.Flush())
	for s := int64(0); s < 128; s++ {
		if got := bit(t, rig, 0, s); got != (s == sector) {
			t.Errorf("bit of sector %d: %v after a write of sector %d alone", s, got, sector)
		}
	}
	test.Must(t, rig.Reopen())
	p, err := cowtest.ReadAll(rig.Disk)
	test.Must(t, err)
	for s := int64(0); s < 128; s++ {
		c, err := cowtest.Identify(p[s*512:][:512], s, nil)
		if base := err == nil && len(c) == 1 && c[0] == cowtest.BaseContent; base != (s != sector) {
			t.Errorf("sector %d shows the base: %v", s, base)
		}
	}
}

// RFC mistake 2: a write whose first sector the head already owns sets no bits for the rest.
func TestRFCRestOfWriteAfterOwnedFirstSector(t *testing.T) {
	for _, bs := range blockSizes {
		rig, _ := newRig(t, cowtest.Shape{Size: 1 << 20, BlockSize: bs, BaseSize: 1 << 20})
		n := int(bs)
		write(t, rig.Disk, '1', 0, n)        // the head owns block 0
		write(t, rig.Disk, '3', 3*64<<10, n) // and one further on
		write(t, rig.Disk, 'w', 0, 4*64<<10)
		test.Must(t, rig.Reopen())
		want(t, rig.Disk, 'w', 0, 4*64<<10)
		for b := range 4 * (64 << 10) / int64(bs) {
			if !bit(t, rig, 0, b) {
				t.Fatalf("block size %d: no bit for block %d of the write", bs, b)
			}
		}
	}
}

// RFC mistake 3: a request is looked up as if the table started at sector 0. Here what can be
// offset is the base in its file and the layer's data in its file or device; the disk itself begins
// at its own sector 0.
func TestRFCNonZeroTableOffset(t *testing.T) {
	rig, _ := newRig(t, cowtest.Shape{Size: 1 << 20, BlockSize: 4096, BaseSize: 1 << 20,
		BaseOffset: 63 * 512})
	test.Must(t, rig.Close())
	const offset = 2048 * 512
	p := layer.Paths{Map: rig.Dir + "/o.map", Data: rig.Dir + "/o.data", DataOffset: offset}
	sum := rig.Spec.Base.Fingerprint
	l, err := layer.CreateHead(vfs.OS{}, p, layer.CreateParams{Size: 1 << 20, BlockSize: 4096,
		Base: sum, BaseSize: 1 << 20})
	test.Must(t, err)
	test.Must(t, l.Close())
	rig.Spec.Layers = []layer.Paths{p}
	test.Must(t, rig.Open())
	const at = 100*4096 + 512
	write(t, rig.Disk, 'w', at, 512)
	test.Must(t, rig.Disk.Flush())
	data, err := os.ReadFile(p.Data)
	test.Must(t, err)
	if data[offset+at] != 'w' || data[at] == 'w' {
		t.Error("the write is not where the data offset puts it")
	}
	if !bit(t, rig, 0, 100) || bit(t, rig, 0, 100+offset/4096) {
		t.Error("the bit is not that of the disk's block 100")
	}
	got, err := cowtest.ReadAll(rig.Disk)
	test.Must(t, err)
	for s := int64(0); s < int64(len(got))/512; s++ {
		if s == at/512 {
			continue
		}
		if c, err := cowtest.Identify(got[s*512:][:512], s, nil); err != nil ||
			c[0] != cowtest.BaseContent {
			t.Fatalf("sector %d: expected the base's, found %v, %v", s, c, err)
		}
	}
}

// RFC mistake 4: a bit is visible or durable before its data. The order of calls of a flush: data
// synced, then the map written, then the map synced; see also
// TestFirstWriteIsInvisibleUntilItsDataIsThere.
func TestRFCBitBeforeData(t *testing.T) {
	rig, x := newRig(t, cowtest.Shape{Size: 1 << 20, BlockSize: 4096})
	var calls []string
	x.OnCall(func(c faultfs.Call) error { // one goroutine at a time calls here
		calls = append(calls, c.Op+" "+c.Name[len(rig.Dir)+1:])
		return nil
	})
	write(t, rig.Disk, 'w', 0, 4096)
	test.Must(t, rig.Disk.Flush())
	x.OnCall(nil)
	expected := []string{"write 0000.data", "sync 0000.data", "write 0000.map", "sync 0000.map"}
	if len(calls) != len(expected) {
		t.Fatalf("expected %q, found %q", expected, calls)
	}
	for i := range calls {
		if calls[i] != expected[i] {
			t.Fatalf("expected %q, found %q", expected, calls)
		}
	}
	// Nothing new: the data alone is synced.
	calls = nil
	x.OnCall(func(c faultfs.Call) error {
		calls = append(calls, c.Op+" "+c.Name[len(rig.Dir)+1:])
		return nil
	})
	write(t, rig.Disk, 'x', 0, 4096)
	test.Must(t, rig.Disk.Flush())
	x.OnCall(nil)
	if len(calls) != 2 || calls[1] != "sync 0000.data" {
		t.Fatalf("flush of an overwrite: expected one data sync, found %q", calls)
	}
}

// RFC mistake 5: no more than ten layers. Here 500, each owning some blocks of its own, reopened.
func TestRFCTenLayers(t *testing.T) {
	const depth = 500
	rig, _ := newRig(t, cowtest.Shape{Size: 4 << 20, BlockSize: 4096, BaseSize: 4 << 20})
	var promotions []*cow.Promotion
	for i := 1; i <= depth; i++ {
		// Block i is this layer's alone, a sector of block 0 every layer's.
		write(t, rig.Disk, byte(i), int64(i)*4096, 4096)
		write(t, rig.Disk, byte(i), 0, 512)
		if i < depth {
			p := promote(t, rig)
			if i%50 == 0 {
				sealed(t, p)
			}
			promotions = append(promotions, p)
		}
	}
	check := func() {
		t.Helper()
		if d := rig.Disk.Depth(); d != depth {
			t.Fatalf("depth: expected %d, found %d", depth, d)
		}
		for i := 1; i <= depth; i++ {
			want(t, rig.Disk, byte(i), int64(i)*4096, 4096)
		}
		want(t, rig.Disk, byte(depth&0xff), 0, 512)
	}
	check()
	test.Must(t, rig.Reopen())
	check()
	for i, p := range promotions {
		test.Check(t, p.Err(), "promotion", i)
	}
	for i := 1; i <= depth; i++ {
		if owned := i < depth; owned != (rig.Disk.Layers()[i-1].State == layer.Sealed) {
			t.Errorf("layer %d: state %v", i, rig.Disk.Layers()[i-1].State)
		}
	}
}
