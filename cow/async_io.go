package cow

import (
	"fmt"
	"slices"

	"cowblk/cow/aio"
	"cowblk/cow/invariants"
)

// engineDepth is the number of a channel's operations that are in the kernel at once; others are
// queued.
const engineDepth = 128

// asyncIO is what an asynchronous channel has in its I/O engine. The thread that uses the engine
// makes it at its first use: a queue that finds everything in memory has none. Without io_uring the
// thread pool does the engine's work.
type asyncIO struct {
	engine       *aio.Engine
	unavailable  bool // the engine could not be made
	ops          []operation
	free         []int // of ops
	backlog      []int // not in the engine yet, in order of arrival
	otherBacklog []int // second array, swapped with backlog
	active       int   // operations submitted and not ended
	finished     []aio.Completion
}

// operation transfers one run of a request: bytes of one source, to or from the caller's buffers.
type operation struct {
	req   *Request
	view  *view // referenced until the operation ends
	src   *source
	cur   cursor
	pos   int64 // of the disk: the next byte
	left  int64 // bytes
	write bool

	dst    cursor // of a read: where its first byte goes
	dstPos int64  // of a read: its first byte of the disk
}

// submitAsync hands n bytes at pos, of one run of r that begins at the cursor, to the I/O engine,
// and moves the cursor behind them. v is pinned. errWouldWait: the engine cannot do it.
func (c *Channel) submitAsync(r *Request, v *view, s *source, pos, n int64, write bool) error {
	a := &c.asyncIO
	if a.engine == nil && !c.makeEngine() {
		return errWouldWait
	}
	iov, _ := c.cur.iovecs(c.iov, n)
	if s.file.AsyncFD(iov, s.start+pos) < 0 {
		return errWouldWait
	}
	if len(a.free) == 0 {
		a.free = append(a.free, len(a.ops))
		a.ops = append(a.ops, operation{})
	}
	i := a.free[len(a.free)-1]
	a.free = a.free[:len(a.free)-1]
	a.ops[i] = operation{req: r, view: v, src: s, cur: c.cur, pos: pos, left: n, write: write,
		dst: c.cur, dstPos: pos}
	c.cur.advance(n)
	r.pending++
	a.active++
	c.pinsOf(write).refAsync(v.seq)
	c.startOperation(i)
	return nil
}

// makeEngine makes the channel's engine, and reports whether it exists. It tries once.
func (c *Channel) makeEngine() bool {
	a := &c.asyncIO
	if a.unavailable {
		return false
	}
	engine, err := c.disk.newEngine(engineDepth, c.FD())
	if err != nil {
		a.unavailable = true
		if c.disk.engineWarned.CompareAndSwap(false, true) {
			c.disk.log.Warn("io_uring is not available: threads wait for the device instead",
				"err", err)
		}
		return false
	}
	a.engine = engine
	a.finished = make([]aio.Completion, 0, engineDepth)
	return true
}

func (c *Channel) pinsOf(write bool) *pinState {
	if write {
		return &c.pins.writes
	}
	return &c.pins.reads
}

// asyncRef counts the asynchronous operations on one view. A channel meets views in the order of
// their seq, so that a new view is always the last.
type asyncRef struct {
	seq uint64
	n   int
}

// refAsync adds a reference to view seq, which the current request has pinned, for one asynchronous
// operation.
func (p *pinState) refAsync(seq uint64) {
	if n := len(p.asyncRefs); n > 0 && p.asyncRefs[n-1].seq == seq {
		p.asyncRefs[n-1].n++
		return
	}
	p.asyncRefs = append(p.asyncRefs, asyncRef{seq, 1})
	p.oldest.Store(p.asyncRefs[0].seq)
}

// unrefAsync drops one reference to view seq.
func (p *pinState) unrefAsync(seq uint64) {
	if invariants.Enabled && !slices.ContainsFunc(p.asyncRefs,
		func(r asyncRef) bool { return r.seq == seq && r.n > 0 }) {
		panic("view: a reference is dropped that nobody has")
	}
	gone := 0
	for i := range p.asyncRefs {
		if p.asyncRefs[i].seq == seq {
			p.asyncRefs[i].n--
		}
		if gone == i && p.asyncRefs[i].n == 0 {
			gone++
		}
	}
	if gone > 0 {
		p.asyncRefs = p.asyncRefs[:copy(p.asyncRefs, p.asyncRefs[gone:])]
	}
	oldest := p.current
	if len(p.asyncRefs) > 0 {
		oldest = p.asyncRefs[0].seq
	}
	p.oldest.Store(oldest)
}

// startOperation gives the rest of operation i to the engine, or queues it if the engine is full.
func (c *Channel) startOperation(i int) {
	a := &c.asyncIO
	o := &a.ops[i]
	off := o.src.start + o.pos
	iov, _ := o.cur.iovecs(c.iov, o.left)
	fd := o.src.file.AsyncFD(iov, off)
	switch {
	case fd < 0: // a short transfer has left a rest that is not aligned
		c.endOperation(i, errWouldWait)
	case len(a.backlog) > 0 || !a.engine.Start(uint64(i), o.write, fd, iov, off):
		a.backlog = append(a.backlog, i)
	}
}

// reap submits what was started, ends what the kernel has completed, and starts operations of the
// backlog in their place.
func (c *Channel) reap() {
	a := &c.asyncIO
	// Operations that the kernel refuses complete with its error; see transferred.
	_ = a.engine.Submit()
	a.finished = a.engine.Reap(a.finished[:0])
	if len(a.finished) == 0 {
		return
	}
	for _, done := range a.finished {
		c.transferred(int(done.ID), done)
	}
	waiting := a.backlog
	a.backlog, a.otherBacklog = a.otherBacklog[:0], waiting
	for _, i := range waiting {
		c.startOperation(i)
	}
	// Also for the rests of short transfers.
	_ = a.engine.Submit()
}

// transferred handles one completion of the engine.
func (c *Channel) transferred(i int, done aio.Completion) {
	o := &c.asyncIO.ops[i]
	off := o.src.start + o.pos
	switch {
	case done.Err != 0:
		// A thread that may block repeats it: a real error comes again, with the name of what
		// failed.
		c.endOperation(i, errWouldWait)
		return
	case done.N == 0 && o.write:
		c.endOperation(i, errWouldWait)
		return
	case done.N == 0:
		c.endOperation(i, fmt.Errorf("read %d bytes at byte %d of %s: %w", o.left, off,
			o.src.file.Name(), ErrTruncated))
		return
	}
	n := int64(done.N)
	if o.src.mapping != nil && o.src.checksums == nil {
		o.src.mapping.MarkResident(off, n) // with checksums, once it was compared: see verify
	}
	o.cur.advance(n)
	o.pos += n
	o.left -= n
	if o.left > 0 {
		c.startOperation(i)
		return
	}
	if !o.write && o.src.checksums != nil {
		c.endOperation(i, c.verify(o.src, o.dst, o.dstPos, o.pos-o.dstPos, true))
		return
	}
	c.endOperation(i, nil)
}

// endOperation ends operation i, and completes its request with the last one.
func (c *Channel) endOperation(i int, err error) {
	a := &c.asyncIO
	o := &a.ops[i]
	r := o.req
	r.fail(err)
	if o.write {
		c.markUnflushed(r)
	}
	c.pinsOf(o.write).unrefAsync(o.view.seq)
	c.disk.wakeSynchronize()
	*o = operation{}
	a.free = append(a.free, i)
	a.active--
	if r.pending--; r.pending > 0 {
		return
	}
	if r.retryBlocking && r.Err == nil {
		c.disk.threadPool.add(r)
		return
	}
	c.finish(r)
}

func (a *asyncIO) close() error {
	if a.engine == nil {
		return nil
	}
	return a.engine.Close()
}
