package backend

import (
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"cowblk/backend/loglimit"
	"cowblk/cow"
	"cowblk/eventfd"
	"cowblk/vhost"
	"cowblk/vhost/blk"
	"cowblk/vhost/guest"
	"cowblk/vhost/virtq"
)

// DefaultQueues is the default number of request queues. libvirt asks for one per vCPU, hence the
// large number.
const DefaultQueues = 64

// Limits of one request that the device announces (virtio 1.2, 5.2.4).
const (
	segMax           = 126              // data descriptors: a ring of 128 less header and status
	sizeMax          = 1 << 20          // bytes in one of them
	maxRangeSectors  = 1 << 22          // of 512 bytes, 2 GiB, in one segment of a DISCARD
	maxRangeSegs     = 64               // segments of a DISCARD or WRITE_ZEROES
	errorLogInterval = 10 * time.Second // one I/O error line a disk in this time
)

// DeviceOptions describes the virtio-blk device in front of a disk.
type DeviceOptions struct {
	Name     string // for the log and GET_ID
	Serial   string // GET_ID, at most 20 bytes; default: the start of Name
	Queues   int    // request queues offered; default DefaultQueues
	ReadOnly bool   // offer VIRTIO_BLK_F_RO even if the disk is writable
	Cache    Cache  // of the disk below; Direct is only reported
	// WritebackWithoutFlush keeps the write cache on for drivers that do not negotiate
	// VIRTIO_BLK_F_FLUSH, against virtio 1.2, 5.2.6.2: a power cut loses up to
	// cow.Options.FlushInterval of their writes. It is for initiators such as SPDK's, which never
	// flush and do not expect completed writes to be stable. It excludes Cache.WriteThrough.
	WritebackWithoutFlush bool
	// Poll is the time that an idle queue polls at most before it sleeps; 0: no polling. Limit:
	// MaxPoll. See DefaultPoll.
	Poll time.Duration
	Log  *slog.Logger // default: slog.Default
}

// Device is the vhost.Backend of one disk. It lives as long as the disk is exported and serves one
// front-end after another.
type Device struct {
	name   string
	disk   atomic.Pointer[cow.Disk] // replaced after a takeover that failed, see Reopen
	config blk.Config
	log    *slog.Logger

	cache writeCache

	parking   atomic.Bool  // see SetParking
	parkedNow atomic.Int64 // parked requests of all workers

	kicks kickWatch

	poll   atomic.Int64 // nanoseconds, see DeviceOptions.Poll
	direct bool         // see Cache

	// stopMu is held while a caller waits for workers, as long as their requests take. No worker is
	// removed meanwhile. Lock order: stopMu before mu.
	stopMu sync.Mutex

	mu      sync.Mutex // held briefly: Stats takes it
	workers []*worker  // by queue; nil: not running
	closing bool       // no queue may start
	past    Stats      // of queues that have stopped

	broken   atomic.Int64  // queues that are broken now
	rejected atomic.Uint64 // connections closed because the front-end broke the protocol

	// ioErrors limits events about failed requests, and their lines with them. The disk's logger,
	// which has a limit for each message, limits no events.
	ioErrors *rate.Limiter
	observer Observer
}

// NewDevice makes the device of a disk. It returns an error if no driver could use a device with
// these options.
func NewDevice(disk *cow.Disk, o DeviceOptions) (*Device, error) {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.Queues == 0 {
		o.Queues = DefaultQueues
	}
	if o.Serial == "" {
		o.Serial = o.Name[:min(len(o.Name), blk.IDSize)]
	}
	block := uint32(disk.BlockSize())
	d := &Device{
		name:     o.Name,
		log:      loglimit.New(o.Log).With("disk", o.Name),
		ioErrors: rate.NewLimiter(rate.Every(errorLogInterval), 1),
		workers:  make([]*worker, o.Queues),
		config: blk.Config{
			Sectors:  uint64(disk.Size()) / blk.SectorSize,
			BlkSize:  blk.SectorSize,
			SegMax:   segMax,
			SizeMax:  sizeMax,
			Queues:   uint16(o.Queues),
			PhysExp:  log2(max(block, 4096) / blk.SectorSize),
			MinIO:    1,
			OptIO:    0,
			ReadOnly: o.ReadOnly || disk.ReadOnly(),
			ID:       o.Serial,

			MaxDiscardSectors:     maxRangeSectors,
			MaxDiscardSeg:         maxRangeSegs,
			DiscardAlign:          block / blk.SectorSize,
			MaxWriteZeroesSectors: maxRangeSectors,
			MaxWriteZeroesSeg:     maxRangeSegs,
			WriteZeroesMayUnmap:   true,
		},
	}
	if err := CheckPoll(o.Poll); err != nil {
		return nil, err
	}
	d.poll.Store(int64(o.Poll))
	d.direct = o.Cache.Direct
	setting := WriteCacheSetting{Off: o.Cache.WriteThrough, WithoutFlush: o.WritebackWithoutFlush}
	if err := setting.Check(); err != nil {
		return nil, fmt.Errorf("disk %s: %w", o.Name, err)
	}
	d.cache.set(setting)
	d.Reset()
	d.disk.Store(disk)
	disk.NotifyFailure(d.diskFailed)
	return d, d.config.Check()
}

func log2(n uint32) (exp uint8) {
	for ; n > 1; n >>= 1 {
		exp++
	}
	return exp
}

// Features implements vhost.Backend.
func (d *Device) Features() uint64 {
	return d.config.Features() | virtq.FeatureIndirectDesc | virtq.FeatureEventIdx |
		vhost.FeatureVersion1
}

// SetFeatures implements vhost.Backend. StartQueue gets the features again.
func (d *Device) SetFeatures(features uint64) error {
	d.negotiate(features)
	return nil
}

func (d *Device) negotiate(features uint64) {
	if news, refused := d.cache.negotiate(features); news && refused && !d.config.ReadOnly {
		d.log.Info("the driver negotiated neither VIRTIO_BLK_F_FLUSH nor VIRTIO_BLK_F_CONFIG_WCE: its writes are made durable before they complete")
	}
}

// Queues implements vhost.Backend.
func (d *Device) Queues() int { return len(d.workers) }

// Config implements vhost.Backend.
func (d *Device) Config(p []byte) error {
	space := d.config.Space(true)
	if len(p) > blk.WritebackOffset {
		space = d.config.Space(d.cache.read())
		d.markCaches()
	}
	clear(p[copy(p, space[:]):])
	return nil
}

// SetConfig implements vhost.Backend. The driver may change one field, writeback (virtio 1.2,
// 5.2.4, VIRTIO_BLK_F_CONFIG_WCE).
func (d *Device) SetConfig(offset uint32, p []byte) error {
	if offset != blk.WritebackOffset || len(p) != 1 || p[0] > 1 {
		return fmt.Errorf("write of %d bytes at %d of the configuration space: only writeback (offset %d, one byte, 0 or 1) can be written",
			len(p), offset, blk.WritebackOffset)
	}
	if d.cache.write(p[0] == 1, len(d.running()) > 0) {
		d.log.Info("write cache", "on", p[0] == 1)
	}
	d.markCaches()
	return nil
}

// SetMemory implements vhost.Backend.
func (d *Device) SetMemory(t *guest.Table) error {
	d.stopMu.Lock()
	defer d.stopMu.Unlock()
	for _, w := range d.running() {
		w.setMemory(t)
	}
	return nil
}

// running returns the running workers.
func (d *Device) running() (ws []*worker) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, w := range d.workers {
		if w != nil {
			ws = append(ws, w)
		}
	}
	return ws
}

// StartQueue implements vhost.Backend.
func (d *Device) StartQueue(q vhost.Queue) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closing {
		eventfd.Close(q.Kick)
		eventfd.Close(q.Call)
		eventfd.Close(q.Err)
		return fmt.Errorf("start queue %d: the disk is being closed", q.Index)
	}
	// After a reset the session does not repeat features that are the same.
	d.negotiate(q.Features)
	d.loadCacheMark(cacheMark(&q))
	w, err := newWorker(d, q)
	if err != nil {
		return err
	}
	w.markCache()
	d.workers[q.Index] = w
	d.mayPoll(w)
	go w.run()
	return nil
}

// StopQueue implements vhost.Backend.
func (d *Device) StopQueue(i int) (base uint16, err error) {
	d.stopMu.Lock()
	defer d.stopMu.Unlock()
	w := d.worker(i)
	if w == nil {
		return 0, fmt.Errorf("queue %d is not running", i)
	}
	base = w.stop()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.past.add(&w.stats)
	w.release()
	if w.broken != nil {
		d.broken.Add(-1)
	}
	if w.counted {
		d.observer.Procs.release()
	}
	d.workers[i] = nil
	return base, nil
}

// SetPoll changes DeviceOptions.Poll; running queues use it at once.
func (d *Device) SetPoll(limit time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.poll.Store(int64(limit))
	for _, w := range d.workers {
		if w != nil {
			d.mayPoll(w)
		}
	}
}

// mayPoll counts a running worker that may poll. The caller holds d.mu.
func (d *Device) mayPoll(w *worker) {
	if !w.counted && d.poll.Load() > 0 {
		w.counted = true
		d.observer.Procs.acquire()
	}
}

// SetCall implements vhost.Backend.
func (d *Device) SetCall(i, fd int) {
	if w := d.worker(i); w != nil {
		w.setCall(fd)
		return
	}
	eventfd.Close(fd)
}

// SetErr implements vhost.Backend.
func (d *Device) SetErr(i, fd int) {
	if w := d.worker(i); w != nil {
		w.setErr(fd)
		return
	}
	eventfd.Close(fd)
}

// SetStatus implements vhost.Backend.
func (d *Device) SetStatus(uint8) {}

// NeedsReset implements vhost.Backend: a queue is broken until it is set up anew.
func (d *Device) NeedsReset() bool { return d.broken.Load() > 0 }

// Reset implements vhost.Backend. The next driver negotiates anew and finds the write cache as the
// operator has set it.
func (d *Device) Reset() { d.cache.reset() }

func (d *Device) worker(i int) *worker {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.workers[i]
}

// Drain stops every ring after its last request and lets none start again. The connection may then
// be closed: the used rings say which requests are done, and the front-end resumes there.
func (d *Device) Drain() {
	d.stopMu.Lock()
	defer d.stopMu.Unlock()
	d.mu.Lock()
	d.closing = true
	d.mu.Unlock()
	for _, w := range d.running() {
		w.stop()
	}
}
