package frontend

import (
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"cowblk/eventfd"
	"cowblk/internal/test"
	"cowblk/vhost"
	"cowblk/vhost/blk"
	"cowblk/vhost/guest"
	"cowblk/vhost/virtq"
)

// ramDisk is a minimal correct back-end: a disk in memory, one goroutine per running ring.
type ramDisk struct {
	config      blk.Config
	data        []byte
	null        bool // requests succeed without data
	ignoreRings bool // rings are not processed at all
	mu          sync.Mutex
	workers     map[int]*ramWorker
	features    uint64
}

func newRAMDisk(size int) *ramDisk {
	return &ramDisk{
		config: blk.Config{
			Sectors: uint64(size / sectorSize), SegMax: 126, Queues: 4, ID: "ram disk",
			MaxDiscardSectors: 1 << 16, MaxWriteZeroesSectors: 1 << 16, WriteZeroesMayUnmap: true,
		},
		data: make([]byte, size), workers: map[int]*ramWorker{},
	}
}

func (d *ramDisk) Features() uint64 {
	return d.config.Features() | virtq.FeatureIndirectDesc |
		virtq.FeatureEventIdx | vhost.FeatureVersion1
}
func (d *ramDisk) SetFeatures(f uint64) error { d.features = f; return nil }
func (d *ramDisk) Queues() int                { return int(d.config.Queues) }
func (d *ramDisk) Config(p []byte) error {
	space := d.config.Space(true)
	clear(p[copy(p, space[:]):])
	return nil
}
func (d *ramDisk) SetConfig(uint32, []byte) error { return nil }
func (d *ramDisk) SetStatus(uint8)                {}
func (d *ramDisk) NeedsReset() bool               { return false }
func (d *ramDisk) Reset()                         {}

func (d *ramDisk) SetMemory(t *guest.Table) error {
	for _, w := range d.workers {
		if err := w.setMemory(t); err != nil {
			return err
		}
	}
	return nil
}

func (d *ramDisk) StartQueue(q vhost.Queue) error {
	w := &ramWorker{disk: d, q: q, stop: make(chan struct{}), done: make(chan struct{})}
	w.parser = blk.NewParser(&d.config, q.Features)
	desc, avail, used, err := virtq.MapSplit(q.Memory, q.Num, q.Desc, q.Avail, q.Used)
	if err == nil {
		w.ring, err = virtq.NewSplit(virtq.SplitConfig{
			Num: q.Num, Desc: desc, Avail: avail, Used: used, Base: q.Base,
			EventIdx: q.Features&virtq.FeatureEventIdx != 0,
			Indirect: q.Features&virtq.FeatureIndirectDesc != 0,
			Inflight: q.Inflight, InflightNum: q.InflightNum,
		})
	}
	if err == nil {
		w.wake, err = eventfd.New()
	}
	if err != nil {
		w.close()
		return err
	}
	q.Memory.Acquire()
	w.memory = q.Memory
	d.workers[q.Index] = w
	go w.run()
	return nil
}

func (d *ramDisk) StopQueue(i int) (uint16, error) {
	w := d.workers[i]
	delete(d.workers, i)
	close(w.stop)
	if err := eventfd.Signal(w.wake); err != nil {
		return 0, err
	}
	<-w.done
	base := w.ring.Base()
	w.memory.Release()
	w.close()
	return base, nil
}

func (d *ramDisk) SetCall(i, fd int) {
	w := d.workers[i]
	w.mu.Lock()
	defer w.mu.Unlock()
	closeFDs(w.q.Call)
	w.q.Call = fd
	if fd >= 0 {
		_ = eventfd.Signal(fd)
	}
}

func (d *ramDisk) SetErr(i, fd int) {
	w := d.workers[i]
	w.mu.Lock()
	defer w.mu.Unlock()
	closeFDs(w.q.Err)
	w.q.Err = fd
}

// ramWorker processes one ring. A batch holds mu, which guards what the session replaces meanwhile.
type ramWorker struct {
	disk   *ramDisk
	mu     sync.Mutex
	q      vhost.Queue
	ring   *virtq.Split
	memory *guest.Table
	parser *blk.Parser
	chain  virtq.Chain
	req    blk.Request
	wake   int
	fds    [2]unix.PollFd
	stop   chan struct{}
	done   chan struct{}
}

func closeFDs(fds ...int) {
	for _, fd := range fds {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
}

func (w *ramWorker) close() { closeFDs(w.q.Kick, w.q.Call, w.q.Err, w.wake) }

func (w *ramWorker) setMemory(t *guest.Table) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	desc, avail, used, err := virtq.MapSplit(t, w.q.Num, w.q.Desc, w.q.Avail, w.q.Used)
	if err == nil {
		err = w.ring.SetMemory(desc, avail, used)
	}
	if err != nil {
		return err
	}
	t.Acquire()
	w.memory.Release()
	w.memory = t
	return nil
}

// run polls for a while before it sleeps on the kick eventfd.
func (w *ramWorker) run() {
	defer close(w.done)
	w.kicksOn(false)
	for idle := 0; ; {
		select {
		case <-w.stop:
			return
		default:
		}
		n := 0
		if !w.disk.ignoreRings {
			n = w.batch()
		}
		if n > 0 {
			idle = 0
			continue
		}
		if idle++; idle < 1000 || (w.q.Kick < 0 && n == 0) {
			continue
		}
		if n < 0 || w.disk.ignoreRings || !w.kicksOn(true) {
			w.fds[0] = unix.PollFd{Fd: int32(w.q.Kick), Events: unix.POLLIN}
			w.fds[1] = unix.PollFd{Fd: int32(w.wake), Events: unix.POLLIN}
			_, _ = unix.Poll(w.fds[:], -1)
			_, _ = eventfd.Drain(w.q.Kick)
		}
		w.kicksOn(false)
		idle = 0
	}
}

func (w *ramWorker) kicksOn(on bool) (pending bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if on {
		return w.ring.EnableKicks()
	}
	w.ring.SuppressKicks()
	return false
}

// batch processes up to 16 available requests; -1: the ring is broken.
func (w *ramWorker) batch() (n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for ; n < 16; n++ {
		head, ok, err := w.ring.Next()
		if err == nil && !ok {
			break
		}
		w.chain.Head = head
		if err == nil {
			err = w.ring.Load(w.memory, &w.chain)
		}
		var status blk.Status
		if err == nil {
			status, err = w.parser.Parse(&w.chain, &w.req)
		}
		if err != nil {
			if w.q.Err >= 0 {
				_ = eventfd.Signal(w.q.Err)
			}
			return -1
		}
		if status == blk.StatusPending {
			status = blk.StatusOK
			if !w.disk.null {
				w.serve()
			}
		}
		w.ring.Push(head, w.req.Finish(status))
	}
	if n > 0 && w.ring.Publish() && w.q.Call >= 0 {
		_ = eventfd.Signal(w.q.Call)
	}
	return n
}

func (w *ramWorker) serve() {
	d := w.disk
	d.mu.Lock()
	defer d.mu.Unlock()
	at := w.req.Sector * sectorSize
	for _, b := range w.req.Data {
		if w.req.Type == blk.TypeIn {
			copy(b, d.data[at:])
		} else {
			copy(d.data[at:], b)
		}
		at += uint64(len(b))
	}
	for _, r := range w.req.Ranges {
		clear(d.data[r.Sector*sectorSize : (r.Sector+r.Sectors)*sectorSize])
	}
}

// connectEnd serves d on a socket pair and connects a front-end to it, nil if that fails. wait
// waits for the end of the session.
func connectEnd(t testing.TB, d *ramDisk, o Options) (f *Frontend, wait func() error) {
	t.Helper()
	ours, theirs := test.SocketPair(t)
	end := make(chan error, 1)
	go func() { end <- vhost.Serve(theirs, d, vhost.Options{}) }()
	f, err := New(ours, o)
	if err != nil {
		t.Logf("connecting: %v", err)
	}
	return f, func() error { return <-end }
}

// connect is connectEnd for a connection that must succeed. The returned function closes it and
// checks both ends.
func connect(t testing.TB, d *ramDisk, o Options) (*Frontend, func()) {
	t.Helper()
	f, wait := connectEnd(t, d, o)
	if f == nil {
		t.Fatal("no connection; Serve:", wait())
	}
	return f, func() {
		t.Helper()
		test.Check(t, f.Close(), "close")
		test.Check(t, wait(), "Serve")
	}
}
