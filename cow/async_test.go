package cow_test

import (
	"bytes"
	"log/slog"
	"math/rand/v2"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cowblk/cow"
	"cowblk/cow/cowtest"
	"cowblk/cow/cowtest/faultfs"
	"cowblk/cow/vfs"
	"cowblk/internal/test"
)

// asyncChannel opens an asynchronous channel on this goroutine's thread.
func asyncChannel(t testing.TB, d *cow.Disk) *cow.Channel {
	t.Helper()
	runtime.LockOSThread()
	ch, err := d.NewAsyncChannel()
	test.Must(t, err)
	t.Cleanup(func() {
		for ch.InFlight() > 0 {
			test.Must(t, waitCompletions(ch, 1))
		}
		test.Check(t, ch.Close())
		runtime.UnlockOSThread()
	})
	return ch
}

// dropCache drops a file's pages from the page cache.
func dropCache(t testing.TB, name string) {
	t.Helper()
	f, err := os.Open(name)
	test.Must(t, err)
	defer f.Close()
	test.Must(t, f.Sync())
	test.Must(t, unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED))
}

// A request that blocks does not delay the requests behind it: not a cold read, not a copy-up of a
// cold block, not a first write of a block that another request is about to own, not a discard.
func TestNothingWaitsBehindABlockedRequest(t *testing.T) {
	for _, tt := range []struct {
		name string
		call string // call that is blocked
		file string
		req  cow.Request
	}{
		{"cold read", "read", "base", cow.Request{Op: cow.OpRead, Offset: 8192, Length: 4096,
			Data: [][]byte{make([]byte, 4096)}}},
		{"copy-up", "read", "base", cow.Request{Op: cow.OpWrite, Offset: 8192, Length: 512,
			Data: [][]byte{make([]byte, 512)}}},
		{"discard", "punch", "data", cow.Request{Op: cow.OpDiscard,
			Ranges: []cow.Range{{Offset: 8192, Length: 4096}}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			rig, x := newRig(t, cowtest.Shape{Size: 1 << 20, BlockSize: 4096, BaseSize: 1 << 20})
			write(t, rig.Disk, 7, 0, 4096)
			ch := asyncChannel(t, rig.Disk)
			held := setTrap(t, x, tt.call, tt.file)
			ch.Submit(&tt.req)
			<-held.caught
			hot := cow.Request{Op: cow.OpRead, Length: 4096, Data: [][]byte{make([]byte, 4096)}}
			ch.Submit(&hot)
			out := ch.Completed(make([]*cow.Request, 0, 4))
			if len(out) != 1 || out[0] != &hot || hot.Err != nil || hot.Data[0][0] != 7 {
				t.Fatalf("expected the hot read alone, found %d requests, error %v", len(out),
					hot.Err)
			}
			held.open()
			if err := waitCompletions(ch, 1); err != nil || tt.req.Err != nil {
				t.Fatal(err, tt.req.Err)
			}
		})
	}
}

// First writes of one block from two channels, one of them blocked in its copy-up: the other
// channel goes on, and both writes take effect.
func TestContendedFirstWriteIsHandedOver(t *testing.T) {
	rig, x := newRig(t, cowtest.Shape{Size: 1 << 20, BlockSize: 4096, BaseSize: 1 << 20})
	held := setTrap(t, x, "read", "base")
	first := startWrite(rig.Disk, 1, 0, 512)
	<-held.caught
	ch := asyncChannel(t, rig.Disk)
	second := cow.Request{Op: cow.OpWrite, Offset: 1024, Length: 512, Data: [][]byte{fill(2, 512)}}
	ch.Submit(&second)
	other := cow.Request{Op: cow.OpWrite, Offset: 65536, Length: 4096,
		Data: [][]byte{fill(3, 4096)}}
	ch.Submit(&other)
	if out := ch.Completed(make([]*cow.Request, 0, 4)); len(out) != 1 || out[0] != &other {
		t.Fatalf("expected the uncontended write alone, found %d requests", len(out))
	}
	held.open()
	first.Must(t)
	if err := waitCompletions(ch, 1); err != nil || second.Err != nil {
		t.Fatal(err, second.Err)
	}
	want(t, rig.Disk, 1, 0, 512)
	want(t, rig.Disk, 2, 1024, 512)
	want(t, rig.Disk, 3, 65536, 4096)
}

// bothWays runs f with io_uring and as where io_uring is not available.
func bothWays(t *testing.T, f func(t *testing.T, ioUring bool)) {
	t.Run("io_uring", func(t *testing.T) { f(t, true) })
	t.Run("thread pool", func(t *testing.T) { f(t, false) })
}

func disableIOUring(d *cow.Disk) { d.DisableIOUring() }

// Cold reads go through the engine or the thread pool, many at once, over every layer, with
// requests split into many pieces; a promotion seals at the same time.
func TestColdReads(t *testing.T) {
	bothWays(t, func(t *testing.T, ioUring bool) {
		for _, direct := range []bool{false, true} {
			t.Run(map[bool]string{false: "buffered", true: "direct"}[direct],
				func(t *testing.T) { coldReads(t, ioUring, direct) })
		}
	})
}

func coldReads(t *testing.T, ioUring, direct bool) {
	const size = 8 << 20
	rig, err := cowtest.NewRig(t.TempDir(), vfs.OS{}, cowtest.Shape{Size: size, BlockSize: 4096,
		BaseSize: size})
	test.Must(t, err)
	t.Cleanup(func() { rig.Close() })
	content := make([]byte, size)
	test.Must(t, test.Err(rig.Disk.ReadAt(content, 0)))
	rng := rand.New(rand.NewPCG(1, 2))
	for layer := range 3 {
		for range 200 {
			off := rng.Int64N(size/512-16) * 512
			p := fill(byte(layer+1), 512*(1+rng.IntN(16)))
			copy(content[off:], p)
			test.Must(t, test.Err(rig.Disk.WriteAt(p, off)))
		}
		sealed(t, promote(t, rig))
	}
	rig.Direct = direct
	if !ioUring {
		rig.OnOpen = disableIOUring
	}
	test.Must(t, rig.Reopen())
	ch := asyncChannel(t, rig.Disk)
	for round := range 5 {
		dropCache(t, rig.Spec.Base.Path)
		for _, l := range rig.Spec.Layers {
			dropCache(t, l.Data)
		}
		const n = 300 // more than the engine takes at once
		reqs := make([]cow.Request, n)
		for i := range reqs {
			r := &reqs[i]
			length := 512 * (1 + rng.Int64N(64))
			r.Offset, r.Length = rng.Int64N((size-length)/512)*512, length
			buf := make([]byte, length)
			cut := rng.Int64N(length)
			r.Data = [][]byte{buf[:cut], nil, buf[cut:]}
			ch.Submit(r)
		}
		var p *cow.Promotion
		if round == 2 {
			p = promote(t, rig)
		}
		test.Must(t, waitCompletions(ch, n))
		for i := range reqs {
			r := &reqs[i]
			got := append(append([]byte(nil), r.Data[0]...), r.Data[2]...)
			if r.Err != nil || string(got) != string(content[r.Offset:r.Offset+r.Length]) {
				t.Fatalf("read of %d bytes at %d: error %v, or wrong content", r.Length, r.Offset,
					r.Err)
			}
		}
		if p != nil {
			sealed(t, p)
		}
	}
}

// TestModelAsync is TestModel on asynchronous channels, half of the time with direct I/O, while the
// page cache is dropped repeatedly.
func TestModelAsync(t *testing.T) {
	total := envInt(t, "COWBLK_MODEL_OPS", 24_000)
	seed := uint64(envInt(t, "COWBLK_MODEL_SEED", int(time.Now().UnixNano()&0xffffffff)))
	bothWays(t, func(t *testing.T, ioUring bool) {
		rng := rand.New(rand.NewPCG(seed, 0))
		for ops, lives := 0, 0; ops < total; lives++ {
			l := newModelRun(t.TempDir(), rng, blockSizes[rng.IntN(len(blockSizes))], total-ops)
			l.async, l.direct, l.dropCaches = true, rng.IntN(2) == 0, true
			if !ioUring {
				l.onOpen = disableIOUring
			}
			n, err := l.run()
			if err != nil {
				t.Fatalf("seed %d, life %d, direct %v: %v", seed, lives, l.direct, err)
			}
			ops += n
		}
	})
}

// Without io_uring each channel tries once to make an engine, the disk logs it once, and requests
// complete.
func TestWithoutIOUring(t *testing.T) {
	rig, x := newRig(t, cowtest.Shape{Size: 1 << 20, BlockSize: 4096, BaseSize: 1 << 20})
	content, err := cowtest.ReadAll(rig.Disk)
	test.Must(t, err)
	test.Must(t, rig.Close())
	var log test.Log
	rig.Disk, err = cow.Open(rig.Spec, cow.Options{FS: x, LoseUnflushed: true, Log: log.Logger()})
	test.Must(t, err)
	attempts := rig.Disk.DisableIOUring()
	x.SetHook(func(c faultfs.Call) faultfs.Fault {
		return faultfs.Fault{Cold: strings.HasSuffix(c.Name, "base")}
	})
	for range 3 {
		ch := asyncChannel(t, rig.Disk)
		for off := int64(0); off < 16*4096; off += 4096 {
			r := cow.Request{Op: cow.OpRead, Offset: off, Length: 4096,
				Data: [][]byte{make([]byte, 4096)}}
			ch.Submit(&r)
			if err := waitCompletions(ch, 1); err != nil || r.Err != nil {
				t.Fatal(err, r.Err)
			}
			if !bytes.Equal(r.Data[0], content[off:][:4096]) {
				t.Fatalf("read at %d: wrong content", off)
			}
		}
	}
	if n := attempts(); n != 3 {
		t.Errorf("%d attempts to make an engine, expected one for each of 3 channels", n)
	}
	if n := log.Count(slog.LevelWarn); n != 1 {
		t.Errorf("expected one line about io_uring, found %d:\n%s", n, &log)
	}
}
