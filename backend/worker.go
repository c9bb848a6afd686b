package backend

import (
	"log/slog"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"cowblk/cow"
	"cowblk/vhost/blk"
	"cowblk/vhost/guest"
	"cowblk/vhost/virtq"
)

// batchSize is how many chains are taken between two looks at completions.
// Publishing in small batches keeps guest and back-end working side by side;
// finishing a whole ring at once runs them in lockstep.
const batchSize = 8

// maxWide is how many chains of unusual length a ring has in flight at once; the
// rest wait in the ring. Without that a guest with many large rings could make
// the process keep gigabytes of slices.
const maxWide = 32

// slot holds one request from Load to Push. It is indexed by the head
// descriptor of its chain, so a ring of n descriptors needs n slots and no
// request needs an allocation. The ring sees to it that no head is in flight twice.
type slot struct {
	chain virtq.Chain
	req   blk.Request
	io    cow.Request
	mem   *pin
}

// pin counts the requests of one ring that use one memory table. It is touched
// by its worker only, so that a request costs no shared cache line; the table
// itself is released when a newer one has replaced it and n is back to 0.
type pin struct {
	table *guest.Table
	n     int
}

// worker serves one virtqueue, from a goroutine locked to its own thread.
type worker struct {
	dev       *Device
	index     int
	log       *slog.Logger
	ring      *virtq.Split
	addr      ringAddress
	cacheMark []byte // see writecachemark.go; nil: none
	parser    *blk.Parser
	ch        *cow.Channel
	slots     []slot
	loaded    []*cow.Request // of the batch under way, to be submitted
	mem       *pin
	done      []*cow.Request // scratch for Completed
	reaped    int            // of done, how many have been seen to

	inflight int
	syncing  int     // of those in flight, the ones that end with a sync of files
	wide     int     // of those in flight, the ones with a long chain
	parked   []*slot // not in flight in the engine, nor given back: see park.go
	stopping bool
	kicks    bool  // the driver has been asked for them
	broken   error // set once; afterwards guest memory is not touched again

	wait  waiter
	poll  busyPoll
	call  int        // eventfd, -1 = none
	errfd int        // eventfd, -1 = none
	fdMu  sync.Mutex // for who changes or, elsewhere, uses these two: see unblock
	stats queueStats

	counted bool // by processors; its Device's, under its mu

	scheduledMu  sync.Mutex
	scheduled    []func()
	hasScheduled atomic.Bool // mail is not empty
	ended        chan struct{}
}

// run is the worker's goroutine. It returns after stop, once the last request
// has completed.
func (w *worker) run() {
	defer close(w.ended)
	runtime.LockOSThread()
	// A front-end may shrink a memory file under us: the access then faults,
	// and must break this queue, not the process (see batch).
	debug.SetPanicOnFault(true)
	// A back-end that died may have published without calling.
	signal(w.call)
	w.poll.start = time.Now()
	for {
		w.runScheduled()
		if w.stopping && w.inflight == 0 {
			w.failParked()
			return
		}
		worked := w.batch()
		if w.wait.kicked {
			w.wait.kicked = false
			w.dev.kicks.onKick(worked)
		}
		if worked {
			w.endSleep()
			continue
		}
		if w.busyPoll() {
			continue
		}
		if w.enableKicks() {
			w.poll.yieldIfDue()
			w.wait.block()
		}
	}
}

// batch is the path of a request. It takes up to batchSize chains from the ring,
// submits them, finishes what has completed and publishes that to the driver.
// It reports whether there was anything to do.
func (w *worker) batch() (worked bool) {
	defer w.catchFault(&worked)
	w.loaded = w.loaded[:0] // a fault has broken the queue with some
	for range batchSize {
		if !w.acceptsRequests() {
			break
		}
		head, ok, err := w.ring.Next()
		if err != nil {
			w.breakQueue(err)
			break
		}
		if !ok {
			break
		}
		worked = true
		if w.kicks {
			w.kicks = false
			w.ring.SuppressKicks()
		}
		if err := w.begin(head); err != nil {
			w.breakQueue(err)
			break
		}
	}
	if len(w.loaded) > 0 {
		w.submit(w.loaded)
	}
	if w.reap() {
		worked = true
	}
	if worked {
		w.publish()
	}
	return worked
}

// begin loads the chain at head into its slot, parses it and makes it a request
// of this batch. An error means that the chain is malformed, which breaks the queue.
func (w *worker) begin(head uint16) error {
	s := &w.slots[head]
	s.chain.Head = head
	if err := w.ring.Load(w.mem.table, &s.chain); err != nil {
		return err
	}
	status, err := w.parser.Parse(&s.chain, &s.req)
	if err != nil {
		return err
	}
	if status != blk.StatusPending {
		w.stats.decided(status)
		w.ring.Push(head, s.req.Finish(status))
		s.trim()
		return nil
	}
	if s.chain.Wide() {
		w.wide++
	}
	w.translate(s)
	w.loaded = append(w.loaded, &s.io)
	return nil
}

// translate turns the parsed request into one of the engine's.
func (w *worker) translate(s *slot) {
	io := &s.io
	io.Slot = int(s.chain.Head)
	io.Err = nil
	io.FUA = false
	io.Data = nil
	io.Ranges = io.Ranges[:0]
	switch s.req.Type {
	case blk.TypeIn:
		io.Op = cow.OpRead
	case blk.TypeOut:
		io.Op = cow.OpWrite
		io.FUA = w.dev.cache.off.Load()
	case blk.TypeFlush:
		io.Op = cow.OpFlush
	case blk.TypeDiscard:
		io.Op = cow.OpDiscard
		io.FUA = w.dev.cache.off.Load()
	case blk.TypeWriteZeroes:
		io.Op = cow.OpWriteZeroes
		io.FUA = w.dev.cache.off.Load()
	}
	io.Offset = int64(s.req.Sector) * blk.SectorSize
	io.Length = int64(s.req.DataLen)
	if io.Op == cow.OpRead || io.Op == cow.OpWrite {
		io.Data = s.req.Data
	}
	for _, r := range s.req.Ranges {
		io.Ranges = append(io.Ranges, cow.Range{
			Offset: int64(r.Sector) * blk.SectorSize,
			Length: int64(r.Sectors) * blk.SectorSize,
		})
	}
}

// submit hands requests to the engine, which may complete them at once or later;
// either way reap sees them.
func (w *worker) submit(all []*cow.Request) {
	for _, io := range all {
		s := &w.slots[io.Slot]
		if s.mem == nil { // one that was parked has its table
			s.mem = w.mem
			s.mem.n++
		}
		w.inflight++
		if syncs(io) {
			w.syncing++
		}
	}
	w.ch.SubmitBatch(all)
}

// syncs reports whether a request ends with a sync of the disk's files.
func syncs(io *cow.Request) bool { return io.Op == cow.OpFlush || io.FUA }

// reap finishes every request that the engine has completed: status byte, used
// element, slot free again. It reports whether there was one.
func (w *worker) reap() bool {
	if w.reaped == len(w.done) { // a fault may have left some
		w.done, w.reaped = w.ch.Completed(w.done[:0]), 0
	}
	worked := w.reaped < len(w.done)
	for w.reaped < len(w.done) {
		io := w.done[w.reaped]
		w.reaped++
		w.finish(&w.slots[io.Slot], io)
	}
	return worked
}

// finish ends one request. Its memory is let go last, and in any case: the
// status byte lies in it, and the table may have been replaced meanwhile.
func (w *worker) finish(s *slot, io *cow.Request) {
	w.inflight--
	if syncs(io) {
		w.syncing--
	}
	if w.parkIfNoSpace(s, io) {
		return
	}
	if s.chain.Wide() {
		w.wide--
	}
	defer w.unpin(s)
	if io.Err != nil {
		w.dev.ioError(w.index, io)
	}
	if w.broken != nil {
		return
	}
	status := statusOf(io.Err)
	w.stats.completed(io, status)
	w.ring.Push(s.chain.Head, s.req.Finish(status))
	s.trim()
}

// acceptsRequests reports whether the worker takes chains from its ring.
func (w *worker) acceptsRequests() bool {
	return w.broken == nil && !w.stopping && w.wide < maxWide
}

// trim gives back the memory that an unusually long chain took.
func (s *slot) trim() {
	if s.chain.Wide() {
		s.req.Data, s.io.Data = nil, nil
		s.chain.Trim()
	}
}

// publish makes the batch's used elements visible and calls the driver if it
// wants to be called.
func (w *worker) publish() {
	w.stats.show()
	if w.broken == nil && w.ring.Publish() {
		w.stats.calls.Add(1)
		signal(w.call)
	}
}

// enableKicks asks the driver for a kick and reports whether the worker may now
// sleep: not if a chain became available in between, or mail came.
func (w *worker) enableKicks() (ok bool) {
	defer w.catchFault(nil)
	taking := w.acceptsRequests()
	w.wait.listenKick(taking)
	if taking {
		w.kicks = true
		if w.ring.EnableKicks() {
			return false
		}
	}
	return !w.hasScheduled.Load()
}

// breakQueue stops the ring for good: only a new ring set-up revives it. The
// driver's fault is told to the front-end through the ring's error eventfd.
func (w *worker) breakQueue(err error) {
	if w.broken != nil {
		return
	}
	w.broken = err
	w.stats.broken.Add(1)
	w.dev.broken.Add(1)
	w.log.Warn("queue is broken: the driver or front-end broke the protocol; it stays idle until the device is reset",
		"queue", w.index, "err", err)
	signal(w.errfd)
}

// catchFault turns a fault on guest memory (its file was shrunk) into a broken
// queue. Any other panic is a bug of ours and goes on.
func (w *worker) catchFault(worked *bool) {
	r := recover()
	if r == nil {
		return
	}
	w.breakQueue(faultError(r))
	if worked != nil {
		*worked = true
	}
}

// unpin drops a request's hold on its memory table.
func (w *worker) unpin(s *slot) {
	p := s.mem
	s.mem = nil
	p.n--
	if p.n == 0 && p != w.mem {
		p.table.Release()
	}
}

// statusOf is the one table from an engine's error to the status byte that the
// driver sees (virtio 1.2, 5.2.6: OK, IOERR, UNSUPP).
func statusOf(err error) blk.Status {
	if err == nil {
		return blk.StatusOK
	}
	return blk.StatusIOErr
}
