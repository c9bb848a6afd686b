package backend

import (
	"bytes"
	"errors"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"cowblk/backend/backendtest"
	"cowblk/cow"
	"cowblk/cow/vfs"
	"cowblk/internal/test"
	"cowblk/vhost/frontend"
)

const testDisk = backendtest.Size

// served is a disk over a base that front-ends can connect to.
type served struct {
	t      testing.TB
	dir    string
	base   []byte
	disk   *cow.Disk
	dev    *Device
	socket string
	stop   func()
}

// serve makes a base of random bytes with one head on top and serves it on a socket.
func serve(t testing.TB, o DeviceOptions) *served {
	t.Helper()
	return serveOn(t, o, vfs.OS{})
}

// serveOn is serve with files of its own kind. prepare runs before anybody can connect.
func serveOn(t testing.TB, o DeviceOptions, files vfs.FS, prepare ...func(*served)) *served {
	t.Helper()
	d := backendtest.NewDisk(t, files)
	s := &served{t: t, dir: d.Dir, base: d.Base, disk: d.Disk, socket: filepath.Join(d.Dir, "sock")}
	o.Name = "test"
	o.Log = slog.New(slog.DiscardHandler)
	var err error
	s.dev, err = NewDevice(s.disk, o)
	test.Must(t, err)
	for _, f := range prepare {
		f(s)
	}
	s.stop = backendtest.Serve(t, s.socket, s.dev, o.Log)
	t.Cleanup(s.stop)
	return s
}

func (s *served) dial(o frontend.Options) *frontend.Frontend {
	s.t.Helper()
	f, err := frontend.Dial(s.socket, o)
	test.Must(s.t, err)
	return f
}

// readBack compares the whole disk with want, through driver d.
func readBack(t *testing.T, d *frontend.Driver, want []byte) {
	t.Helper()
	buf := make([]byte, 1<<20)
	for off := 0; off < len(want); off += len(buf) {
		_, err := d.ReadAt(buf, int64(off))
		test.Must(t, err)
		if !bytes.Equal(buf, want[off:off+len(buf)]) {
			t.Fatalf("content differs between %d and %d", off, off+len(buf))
		}
	}
}

func TestReadWriteThroughRings(t *testing.T) {
	for name, o := range map[string]frontend.Options{
		"qemu":         {},
		"qemu polling": {Poll: true},
		"spdk":         {Style: frontend.SPDK, Poll: true},
		"4 queues":     {Queues: 4},
		"8 regions":    {Regions: 8},
		"no kick":      {NoKick: true},
		"small ring":   {QueueSize: 4},
		"large ring":   {QueueSize: 1024},
		"no event idx": {Refuse: frontend.FeatureEventIdx},
		"no indirect":  {Refuse: frontend.FeatureIndirect},
	} {
		t.Run(name, func(t *testing.T) {
			s := serve(t, DeviceOptions{})
			f := s.dial(o)
			defer f.Close()
			if got := f.Capacity(); got != testDisk {
				t.Fatalf("capacity %d, expected %d", got, testDisk)
			}
			want := bytes.Clone(s.base)
			r := rand.New(rand.NewPCG(1, 2))
			queues := max(o.Queues, 1)
			for i := range 200 {
				d := f.Driver(i % queues)
				n := (1 + r.IntN(256)) * 512
				off := r.IntN((testDisk-n)/512) * 512
				p := make([]byte, n)
				for j := range p {
					p[j] = byte(i + j)
				}
				_, err := d.WriteAt(p, int64(off))
				test.Must(t, err)
				copy(want[off:], p)
				if i%50 == 0 && f.Features()&frontend.FeatureFlush != 0 {
					test.Must(t, d.Flush())
				}
			}
			readBack(t, f.Driver(0), want)
		})
	}
}

func TestDiscardWriteZeroesAndID(t *testing.T) {
	s := serve(t, DeviceOptions{Serial: "serial-1"})
	f := s.dial(frontend.Options{})
	defer f.Close()
	d := f.Driver(0)
	id, err := d.GetID()
	test.Must(t, err)
	test.Equal(t, id, "serial-1", "GET_ID")
	want := bytes.Clone(s.base)
	test.Must(t, d.WriteZeroes(frontend.Range{Off: 512, Len: 9000 - 9000%512},
		frontend.Range{Off: 1 << 20, Len: 2 << 20}))
	clear(want[512 : 512+9000-9000%512])
	clear(want[1<<20 : 3<<20])
	test.Must(t, d.Discard(frontend.Range{Off: 8 << 20, Len: 1 << 20}))
	clear(want[8<<20 : 9<<20])
	readBack(t, d, want)
}

func TestStopContResetKeepContent(t *testing.T) {
	s := serve(t, DeviceOptions{})
	f := s.dial(frontend.Options{Queues: 2})
	defer f.Close()
	want := bytes.Clone(s.base)
	for i := range 20 {
		p := bytes.Repeat([]byte{byte(i)}, 3*512)
		off := int64(i) * 4096 * 3
		_, err := f.Driver(i%2).WriteAt(p, off)
		test.Must(t, err)
		copy(want[off:], p)
		switch i % 3 {
		case 0:
			test.Must(t, f.Stop())
			test.Must(t, f.Cont())
		case 1:
			test.Must(t, f.Reset())
		}
	}
	readBack(t, f.Driver(1), want)
}

func TestNextFrontendOnTheSameSocket(t *testing.T) {
	s := serve(t, DeviceOptions{})
	want := bytes.Clone(s.base)
	for i := range 30 {
		f := s.dial(frontend.Options{})
		p := bytes.Repeat([]byte{byte(i + 1)}, 4096)
		_, err := f.Driver(0).WriteAt(p, int64(i)*8192)
		test.Must(t, err)
		copy(want[i*8192:], p)
		if i%2 == 0 {
			test.Must(t, f.Close())
		} else {
			test.Must(t, f.Abort()) // as when QEMU is killed
		}
	}
	f := s.dial(frontend.Options{})
	defer f.Close()
	readBack(t, f.Driver(0), want)
	if got := s.dev.Stats().Writes; got != 30 {
		t.Errorf("%d writes counted, expected 30", got)
	}
}

func TestReadOnlyDevice(t *testing.T) {
	s := serve(t, DeviceOptions{ReadOnly: true})
	f := s.dial(frontend.Options{})
	defer f.Close()
	if f.Offered()&frontend.FeatureRO == 0 ||
		f.Offered()&(frontend.FeatureDiscard|frontend.FeatureWriteZeroes) != 0 {
		t.Errorf("features %#x", f.Offered())
	}
	var status *frontend.StatusError
	if _, err := f.Driver(0).WriteAt(make([]byte, 512), 0); !errors.As(err, &status) {
		t.Errorf("write: %v", err)
	}
	readBack(t, f.Driver(0), s.base)
}

func TestWriteCacheOff(t *testing.T) {
	s := serve(t, DeviceOptions{})
	f := s.dial(frontend.Options{})
	defer f.Close()
	d := f.Driver(0)
	rounds := func() uint64 { return s.disk.Stats().FlushRounds }
	_, err := d.WriteAt(make([]byte, 4096), 0)
	test.Must(t, err)
	if rounds() != 0 {
		t.Fatal("a write with the cache on was flushed")
	}
	test.Must(t, f.SetConfig(32, []byte{0}))
	_, err = d.WriteAt(make([]byte, 4096), 0)
	test.Must(t, err)
	if rounds() != 1 {
		t.Errorf("%d flush rounds after a write with the cache off, expected 1", rounds())
	}
}

// A memory file that is cut while it is in use breaks the queue that touches it; the process and
// the other disks go on.
func TestMemoryShrunkUnderTheQueue(t *testing.T) {
	bad, good := serve(t, DeviceOptions{}), serve(t, DeviceOptions{})
	healthy := good.dial(frontend.Options{})
	defer healthy.Close()
	f := bad.dial(frontend.Options{NoKick: true, Timeout: 2 * time.Second})
	test.Must(t, os.Truncate(memoryFile(f), 0))
	test.Eventually(t, "the queue breaks", func() bool { return bad.dev.Stats().Broken > 0 })
	f.Abort()
	readBack(t, healthy.Driver(0), good.base)

	again := bad.dial(frontend.Options{})
	defer again.Close()
	readBack(t, again.Driver(0), bad.base)
}

func memoryFile(f *frontend.Frontend) string {
	return filepath.Join("/proc/self/fd", strconv.Itoa(f.Memory().FD()))
}

// SIGTERM: every request that the ring says is taken has been completed, none is started any more,
// and then the connection ends.
func TestStopUnderLoadCompletesWhatItTook(t *testing.T) {
	s := serve(t, DeviceOptions{})
	f := s.dial(frontend.Options{QueueSize: 256})
	defer f.Abort()
	d := f.Driver(0)
	stopped := make(chan struct{})
	stop := sync.OnceFunc(func() {
		go func() { s.stop(); close(stopped) }()
	})
	completed := 0
	var done []frontend.Completion
	inFlight := make([]bool, d.Slots())
	for running := true; running; {
		select {
		case <-stopped:
			running = false
		default:
		}
		for i := range inFlight {
			if !inFlight[i] && running && d.Submit(i, frontend.OpWrite, int64(i)*4096,
				4096) == nil {
				inFlight[i] = true
			}
		}
		test.Must(t, d.Kick())
		done = d.Poll(done[:0])
		for _, c := range done {
			inFlight[c.ID] = false
			if c.Status != frontend.StatusOK {
				t.Fatalf("status %d", c.Status)
			}
		}
		if completed += len(done); completed > 1000 {
			stop()
		}
	}
	test.Must(t, d.Err())
}

func TestNoAllocationPerRequest(t *testing.T) {
	s := serve(t, DeviceOptions{})
	f := s.dial(frontend.Options{}) // not polling: AllocsPerRun leaves one thread to run Go
	defer f.Close()
	d := f.Driver(0)
	done := make([]frontend.Completion, 0, 8)
	round := func(op frontend.Op, off int64) {
		test.Must(t, d.Submit(0, op, off, 4096))
		test.Must(t, d.Kick())
		for done = d.Poll(done[:0]); len(done) == 0; done = d.Poll(done[:0]) {
			test.Must(t, d.Wait())
		}
	}
	round(frontend.OpWrite, 0)
	for name, op := range map[string]frontend.Op{"read": frontend.OpRead, "write": frontend.OpWrite,
		"flush": frontend.OpFlush} {
		// AllocsPerRun counts every goroutine's, hence the worker's too.
		if n := testing.AllocsPerRun(1000, func() { round(op, 0) }); n != 0 {
			t.Errorf("%s: %v allocations per request", name, n)
		}
	}
	off := int64(1 << 20)
	if n := testing.AllocsPerRun(1000,
		func() { round(frontend.OpWrite, off); off += 4096 }); n != 0 {
		t.Errorf("first write: %v allocations per request", n)
	}
}
