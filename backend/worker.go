package backend

import (
	"log/slog"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"cowblk/cow"
	"cowblk/cow/invariants"
	"cowblk/eventfd"
	"cowblk/vhost/blk"
	"cowblk/vhost/guest"
	"cowblk/vhost/virtq"
)

// batchSize is the number of chains that a worker takes before it looks at completions. Small
// batches keep guest and back-end working side by side; finishing a whole ring at once runs them in
// lockstep.
const batchSize = 8

// maxWide is the number of long chains that a ring has in flight at once; more wait in the ring.
// Without it a guest with many large rings could make the process keep gigabytes of slices.
const maxWide = 32

// slot holds one request from Load to Push. Its index is the head descriptor of the chain, so a
// ring of n descriptors needs n slots, and no request needs an allocation. The ring makes sure that
// no head is in flight twice.
type slot struct {
	chain virtq.Chain
	req   blk.Request
	io    cow.Request
	mem   *pin
}

// pin counts the requests of one ring that use one memory table. Only the ring's worker touches it,
// so a request costs no shared cache line. The table is released when a newer one has replaced it
// and n is 0.
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
	cacheMark []byte // see write_cache_mark.go; nil: none
	parser    *blk.Parser
	ch        *cow.Channel
	slots     []slot
	loaded    []*cow.Request // of the current batch, to be submitted
	mem       *pin
	done      []*cow.Request // scratch for Completed
	reaped    int            // number of elements of done that are finished

	inflight int
	syncing  int     // in flight: requests that end with a sync of files
	wide     int     // in flight: requests with a long chain
	parked   []*slot // neither in the engine nor completed: see park.go
	stopping bool
	kicks    bool  // the driver has been asked for kicks
	broken   error // set once; afterwards the worker does not touch guest memory

	wait  waiter
	poll  busyPoll
	call  int        // eventfd, -1 = none
	errfd int        // eventfd, -1 = none
	fdMu  sync.Mutex // guards changes of call and errfd, and uses by unblockEventfds
	stats queueStats

	counted bool // by MaxProcs; guarded by Device.mu

	scheduledMu  sync.Mutex
	scheduled    []func()
	hasScheduled atomic.Bool // scheduled is not empty
	ended        chan struct{}
}

// run is the worker's goroutine. After stop it returns when the last request has completed.
func (w *worker) run() {
	defer close(w.ended)
	runtime.LockOSThread()
	// A front-end may shrink a memory file. The access then faults, and must break this queue, not
	// the process (see batch).
	debug.SetPanicOnFault(true)
	// A back-end that died may have published without a call.
	_ = eventfd.Signal(w.call)
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

// batch is the path of a request. It takes up to batchSize chains from the ring, submits them,
// finishes completed requests and publishes them to the driver. It reports whether there was
// anything to do.
func (w *worker) batch() (worked bool) {
	defer w.catchFault(&worked)
	w.loaded = w.loaded[:0] // a fault may have left some
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

// begin loads the chain at head into its slot, parses it and adds the request to the batch. An
// error means that the chain is malformed, which breaks the queue.
func (w *worker) begin(head uint16) error {
	s := &w.slots[head]
	if invariants.Enabled && s.mem != nil {
		panic("worker: the slot of a new request is in use")
	}
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

// translate fills the slot's engine request from the parsed one.
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

// submit hands requests to the engine. They complete at once or later; reap finds both.
func (w *worker) submit(all []*cow.Request) {
	for _, io := range all {
		s := &w.slots[io.Slot]
		if s.mem == nil { // a parked request has its table already
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

// reap finishes every request that the engine has completed: status byte, used element, slot free.
// It reports whether there was one.
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

// finish ends one request. It releases the memory table last, and always: the status byte lies in
// guest memory, and the table may have been replaced meanwhile.
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

// trim releases the memory of an unusually long chain.
func (s *slot) trim() {
	if s.chain.Wide() {
		s.req.Data, s.io.Data = nil, nil
		s.chain.Trim()
	}
}

// publish makes the batch's used elements visible and calls the driver if it asked for calls.
func (w *worker) publish() {
	w.stats.show()
	if w.broken == nil && w.ring.Publish() {
		w.stats.calls.Add(1)
		_ = eventfd.Signal(w.call)
	}
}

// enableKicks asks the driver for kicks and reports whether the worker may sleep: not if a chain
// became available in between, or a function was scheduled.
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

// breakQueue stops the ring for good; only a new ring set-up starts it again. The ring's error
// eventfd reports the driver's fault to the front-end.
func (w *worker) breakQueue(err error) {
	if w.broken != nil {
		return
	}
	w.broken = err
	w.stats.broken.Add(1)
	w.dev.broken.Add(1)
	w.log.Warn("queue is broken: the driver or front-end broke the protocol; it stays idle until the device is reset",
		"queue", w.index, "err", err)
	_ = eventfd.Signal(w.errfd)
}

// catchFault turns a fault on guest memory (a truncated file) into a broken queue. Any other panic
// is a bug of cowblk and continues.
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

// unpin releases a request's reference to its memory table.
func (w *worker) unpin(s *slot) {
	p := s.mem
	s.mem = nil
	p.n--
	if p.n == 0 && p != w.mem {
		p.table.Release()
	}
}

// statusOf is the table from engine errors to status bytes (virtio 1.2, 5.2.6: OK, IOERR, UNSUPP).
func statusOf(err error) blk.Status {
	if err == nil {
		return blk.StatusOK
	}
	return blk.StatusIOErr
}
