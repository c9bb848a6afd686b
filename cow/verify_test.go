package cow_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cowblk/cow"
	"cowblk/cow/cowtest"
	"cowblk/cow/cowtest/faultfs"
	"cowblk/cow/layer"
	"cowblk/cow/vfs"
	"cowblk/internal/test"
)

const (
	verifiedSize = 4<<20 + 1024
	rotten       = 1<<20 + 5*4096 + 1000 // the byte that turns over
)

// verified makes a stack of a sealed layer, full of 7, with data checksums in a file of their own
// or behind the map, and a head that owns the last MiB, full of 8.
func verified(t *testing.T, fsys vfs.FS, blockSize uint32, direct, apart bool) *cowtest.Rig {
	t.Helper()
	rig, err := cowtest.NewRig(t.TempDir(), fsys, cowtest.Shape{Size: verifiedSize,
		BlockSize: blockSize, ChecksumFiles: apart})
	test.Must(t, err)
	t.Cleanup(func() {
		test.Check(t, rig.Close())
	})
	rig.Direct = direct
	write(t, rig.Disk, 7, 0, verifiedSize)
	sealed(t, promote(t, rig))
	test.Must(t, rig.Disk.AddChecksums(context.Background(), nil))
	write(t, rig.Disk, 8, 3<<20, 1<<20)
	test.Must(t, rig.Reopen())
	if h := rig.Disk.Layers()[0]; h.HasChecksums() == apart {
		t.Fatalf("%+v", h)
	}
	return rig
}

// splitBuffers splits n bytes into buffers of uneven lengths.
func splitBuffers(n, size int) (all [][]byte) {
	for n > 0 {
		all = append(all, make([]byte, min(n, size)))
		n -= min(n, size)
		size = size*2 + 512
	}
	return all
}

// Damaged data of a sealed layer is an error for reads of any part of its unit, on every read path,
// and for no other read.
func TestDamagedDataIsAnError(t *testing.T) {
	for _, blockSize := range []uint32{512, 4096, 65536} {
		for _, direct := range []bool{false, true} {
			for _, async := range []bool{false, true} {
				for _, cold := range []bool{false, true} {
					apart := blockSize == 4096 && direct == async
					t.Run(fmt.Sprintf("block %d, direct %v, async %v, cold %v, apart %v", blockSize,
						direct, async, cold, apart), func(t *testing.T) {
						rig := verified(t, vfs.OS{}, blockSize, direct, apart)
						data := rig.Spec.Layers[0].Data
						scribble(t, data, rotten)
						ch := channel(t, rig.Disk, async)
						unit := int64(min(blockSize, 4096))
						bad := int64(rotten) / unit * unit
						for _, c := range []struct {
							off, n int64
							fails  bool
						}{
							{bad, unit, true}, {bad + unit - 512, 512, true}, {bad, 512, true},
							{bad - 512, 1024, true}, {bad - 3*unit, 64 << 10, true},
							{0, verifiedSize, true}, {bad - unit, unit, false},
							{bad + unit, 8192, false}, {0, bad, false}, {3<<20 - 512, 2048, false},
							{bad + unit - 512, 1024, true}, {verifiedSize - 1024, 1024, false},
							{verifiedSize - 512, 512, false},
						} {
							if cold {
								dropCache(t, data)
								if dropCache(t, rig.Spec.Layers[0].Map); apart {
									dropCache(t, rig.Spec.Layers[0].Checksums)
								}
							}
							r := &cow.Request{Op: cow.OpRead, Offset: c.off, Length: c.n,
								Data: splitBuffers(int(c.n), 512)}
							ch.Submit(r)
							test.Must(t, waitCompletions(ch, 1))
							if c.fails != errors.Is(r.Err, layer.ErrDamaged) || !c.fails &&
								r.Err != nil {
								t.Errorf("%d bytes at %d: %v", c.n, c.off, r.Err)
							}
							if c.fails {
								continue
							}
							for i, b := range bytes.Join(r.Data, nil) {
								want := byte(7)
								if at := c.off + int64(i); at >= 3<<20 && at < 4<<20 {
									want = 8
								}
								if b != want {
									t.Fatalf("%d bytes at %d: byte %d is %#x", c.n, c.off, i, b)
								}
							}
						}
					})
				}
			}
		}
	}
}

// pages returns memory that is aligned for direct I/O.
func pages(t *testing.T, n int) []byte {
	t.Helper()
	p, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	test.Must(t, err)
	t.Cleanup(func() { unix.Munmap(p) })
	return p
}

// Data that is damaged after it was read, and has to be read from the device again, is an error
// too. (A file system in memory has no device.)
func TestDataDamagedLater(t *testing.T) {
	var st unix.Statfs_t
	test.Must(t, unix.Statfs(t.TempDir(), &st))
	for _, async := range []bool{false, true} {
		// past the page cache: async means the engine
		rig := verified(t, vfs.OS{}, 4096, true, async)
		ch := channel(t, rig.Disk, async)
		read := func(off, n int64) error {
			r := &cow.Request{Op: cow.OpRead, Offset: off, Length: n,
				Data: [][]byte{pages(t, int(n))}}
			ch.Submit(r)
			test.Must(t, waitCompletions(ch, 1))
			return r.Err
		}
		const page = rotten / 4096 * 4096
		test.Must(t, read(page, 8192))
		scribble(t, rig.Spec.Layers[0].Data, rotten)
		if err := read(page, 4096); errors.Is(err, layer.ErrDamaged) == (async &&
			st.Type == unix.TMPFS_MAGIC) {
			t.Errorf("async %v: %v", async, err)
		}
		test.Check(t, read(page+4096, 4096), "async", async, "the next block")
	}
}

// Data that was verified in memory, is damaged on the device, and is read from there again through
// a mapping that takes it for resident, is an error too. (A file system in memory has no device.)
func TestDataDamagedUnderMapping(t *testing.T) {
	var st unix.Statfs_t
	test.Must(t, unix.Statfs(t.TempDir(), &st))
	rig := verified(t, vfs.OS{}, 4096, false, false)
	ch := asyncChannel(t, rig.Disk)
	read := func(off int64) error { return readPage(t, ch, off) }
	data := rig.Spec.Layers[0].Data
	const page = rotten / 4096 * 4096
	for i := range int64(100) { // of which some are timed anyway
		for range 3 {
			test.Must(t, read(page+i*8192))
		}
	}
	damagePage(t, data, page)
	if err := read(page); errors.Is(err, layer.ErrDamaged) == (st.Type == unix.TMPFS_MAGIC) {
		t.Errorf("got %v", err)
	}
	for i := int64(1); i < 100; i++ {
		test.Check(t, read(page+i*8192))
	}
}

// readPage reads 4 KiB through a channel.
func readPage(t *testing.T, ch *cow.Channel, off int64) error {
	t.Helper()
	r := &cow.Request{Op: cow.OpRead, Offset: off, Length: 4096, Data: [][]byte{make([]byte, 4096)}}
	ch.Submit(r)
	test.Must(t, waitCompletions(ch, 1))
	return r.Err
}

// damagePage changes a page of a file on the device and drops it from the page cache even though it
// is mapped, as a write past the page cache does.
func damagePage(t *testing.T, name string, page int64) {
	t.Helper()
	f, err := os.OpenFile(name, os.O_RDWR|unix.O_DIRECT, 0)
	test.Must(t, err)
	defer f.Close()
	p := pages(t, 4096)
	test.Must(t, test.Err(f.ReadAt(p, page)))
	p[1000] ^= 1
	test.Must(t, test.Err(f.WriteAt(p, page)))
}

func channel(t *testing.T, d *cow.Disk, async bool) *cow.Channel {
	if async {
		return asyncChannel(t, d)
	}
	ch, err := d.NewChannel()
	test.Must(t, err)
	t.Cleanup(func() { ch.Close() })
	return ch
}

// A write of part of a damaged block fails: the rest of the block would be wrong without notice. A
// write of the whole block repairs it.
func TestCopyUpOfDamagedData(t *testing.T) {
	for _, async := range []bool{false, true} {
		rig := verified(t, vfs.OS{}, 65536, false, async)
		scribble(t, rig.Spec.Layers[0].Data, rotten)
		ch := channel(t, rig.Disk, async)
		block := int64(rotten) / 65536 * 65536
		put := func(off int64, n int) error {
			r := &cow.Request{Op: cow.OpWrite, Offset: off, Length: int64(n),
				Data: [][]byte{fill(9, n)}}
			ch.Submit(r)
			test.Must(t, waitCompletions(ch, 1))
			return r.Err
		}
		test.ErrorIs(t, put(block+512, 512), layer.ErrDamaged, "part of the block")
		test.Equal(t, rig.Disk.Stats().FirstWrites, 0, "blocks are the head's")
		test.Check(t, put(block+65536+512, 512), "part of the next block")
		want(t, rig.Disk, 7, block+65536+1024, 65536-1024)
		test.Check(t, put(block, 65536), "the whole block")
		want(t, rig.Disk, 9, block, 65536)
	}
}

// Data that is wrong only in transfer is read again, and the caller gets the right data.
func TestDataCorruptedInTransfer(t *testing.T) {
	for _, async := range []bool{false, true} {
		x := faultfs.Over(vfs.OS{}, nil)
		rig := verified(t, x, 4096, false, async)
		ch := channel(t, rig.Disk, async)
		var reads atomic.Int64
		// Each first read of the data is right, or each second one.
		x.SetHook(func(c faultfs.Call) faultfs.Fault {
			return faultfs.Fault{Corrupt: c.Op == "read" && strings.HasSuffix(c.Name, "data") &&
				reads.Add(1)%2 == 0}
		})
		for _, first := range []int64{0, 1} {
			reads.Store(first)
			for off := first * (1 << 20); off < (first+1)<<20; off += 4096 {
				r := &cow.Request{Op: cow.OpRead, Offset: off, Length: 4096,
					Data: splitBuffers(4096, 1024)}
				ch.Submit(r)
				test.Must(t, waitCompletions(ch, 1))
				if got := bytes.Join(r.Data, nil); r.Err != nil ||
					!bytes.Equal(got, fill(7, 4096)) {
					t.Fatalf("async %v, byte %d: %v, wrong %v", async, off, r.Err, r.Err == nil)
				}
			}
		}
	}
}

// Checksums that are added while the disk is in use are used at once, and again after another
// promotion.
func TestAddChecksumsToOpenDisk(t *testing.T) {
	for _, apart := range []bool{false, true} {
		t.Run(fmt.Sprintf("apart %v", apart),
			func(t *testing.T) { addChecksumsToOpenDisk(t, apart) })
	}
}

func addChecksumsToOpenDisk(t *testing.T, apart bool) {
	rig, _ := newRig(t, cowtest.Shape{Size: 1 << 20, BlockSize: 4096, ChecksumFiles: apart})
	for i := range 3 {
		off := int64(i) * 65536
		write(t, rig.Disk, byte(i+1), off, 65536)
		p := promote(t, rig)
		_ = rig.Disk.AddChecksums(context.Background(), nil) // at any stage of the promotion
		sealed(t, p)
		test.Must(t, rig.Disk.AddChecksums(context.Background(), nil))
		for j, p := range rig.Spec.Layers {
			found, err := layer.Inspect(vfs.OS{}, p, layer.InspectParams{})
			if errors.Is(err, layer.ErrInUse) && j > i {
				continue // the head
			}
			if err != nil || !found.HasChecksums {
				t.Errorf("layer %d of %d: checksums %v, %v", j, i+1, found, err)
			}
		}
		want(t, rig.Disk, byte(i+1), off, 4096)
		scribble(t, rig.Spec.Layers[i].Data, off+8192)
		test.ErrorIs(t, test.Err(rig.Disk.ReadAt(make([]byte, 512), off+8192+1024)),
			layer.ErrDamaged, i)
		want(t, rig.Disk, byte(i+1), off+12288, 4096)
	}
}

// Pages that were read before a layer had checksums, and are marked resident, are compared once it
// has them.
func TestAddChecksumsVerifiesResidentPages(t *testing.T) {
	// which maps files
	rig, err := cowtest.NewRig(t.TempDir(), vfs.OS{}, cowtest.Shape{Size: 1 << 20, BlockSize: 4096})
	test.Must(t, err)
	t.Cleanup(func() {
		test.Check(t, rig.Close())
	})
	write(t, rig.Disk, 7, 0, 65536)
	sealed(t, promote(t, rig))
	ch := channel(t, rig.Disk, true)
	read := func(off int64) error { return readPage(t, ch, off) }
	for range 2 { // from the file, and from its mapping
		test.Must(t, read(8192))
	}
	test.Must(t, rig.Disk.AddChecksums(context.Background(), nil))
	scribble(t, rig.Spec.Layers[0].Data, 8192+1000)
	test.ErrorIs(t, read(8192), layer.ErrDamaged, "a damaged block that had been read before")
	test.Check(t, read(12288))
}

// Close does not wait for throttle.
func TestCloseEndsAddChecksums(t *testing.T) {
	rig, _ := newRig(t, cowtest.Shape{Size: 4 << 20, BlockSize: 4096})
	write(t, rig.Disk, 7, 0, 4<<20)
	sealed(t, promote(t, rig))
	throttled := make(chan struct{}, 64)
	work := test.Go(func() error {
		return rig.Disk.AddChecksums(context.Background(), func(ctx context.Context) error {
			throttled <- struct{}{}
			select {
			case <-ctx.Done():
			case <-time.After(time.Hour):
			}
			return ctx.Err()
		})
	})
	<-throttled
	test.Must(t, rig.Reopen())
	test.ErrorIs(t, work.Wait(), cow.ErrClosed, "AddChecksums")
	if h := rig.Disk.Layers()[0]; h.HasChecksums() {
		t.Error("half a table is believed")
	}
	if err := rig.Disk.AddChecksums(context.Background(), nil); err != nil ||
		!rig.Disk.Layers()[0].HasChecksums() {
		t.Error(err)
	}
	want(t, rig.Disk, 7, 0, 4<<20)
}
