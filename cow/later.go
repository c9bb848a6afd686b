package cow

import (
	"fmt"

	"cowblk/cow/aio"
)

// engineDepth is how many operations of a channel are in the kernel at once;
// more of them wait for their turn.
const engineDepth = 128

// later is what an asynchronous channel has under way in its I/O engine. The
// engine is made when it is needed first, by the thread that uses it: a queue
// that finds everything in memory has none.
type later struct {
	engine   aio.Engine
	ops      []operation
	free     []int // of ops
	backlog  []int // not in the engine yet, in order of arrival
	spare    []int // the backlog's other array
	active   int   // operations begun and not ended
	finished []aio.Completion
}

// operation is one run of a request: bytes of one source, to or from the
// caller's buffers.
type operation struct {
	req   *Request
	view  *view // held until the operation ends
	src   *source
	cur   cursor
	pos   int64 // of the disk, next byte
	left  int64 // bytes
	write bool

	landing cursor // of a read: where the first byte goes
	begin   int64  // and which it is
}

// postpone hands n bytes at pos, of one run of r that the cursor stands at, to the
// I/O engine, and moves the cursor behind them. v is pinned. errWouldWait where
// the engine cannot do it.
func (c *Channel) postpone(r *Request, v *view, s *source, pos, n int64, write bool) error {
	l := &c.later
	if l.engine == nil {
		var err error
		if l.engine, err = aio.New(aio.Options{Depth: engineDepth, EventFD: c.remote.fd}); err != nil {
			return errWouldWait
		}
		l.finished = make([]aio.Completion, 0, engineDepth)
	}
	iov, _ := c.cur.iovecs(c.iov, n)
	if s.file.AsyncFD(iov, s.start+pos) < 0 {
		return errWouldWait
	}
	if len(l.free) == 0 {
		l.free = append(l.free, len(l.ops))
		l.ops = append(l.ops, operation{})
	}
	i := l.free[len(l.free)-1]
	l.free = l.free[:len(l.free)-1]
	l.ops[i] = operation{req: r, view: v, src: s, cur: c.cur, pos: pos, left: n, write: write, landing: c.cur, begin: pos}
	c.cur.advance(n)
	r.pending++
	l.active++
	c.pinsOf(write).hold(v.seq)
	c.start(i)
	return nil
}

func (c *Channel) pinsOf(write bool) *pinned {
	if write {
		return &c.pins.writes
	}
	return &c.pins.reads
}

// start gives what is left of operation i to the engine, or lets it wait for
// room there.
func (c *Channel) start(i int) {
	l := &c.later
	o := &l.ops[i]
	off := o.src.start + o.pos
	iov, _ := o.cur.iovecs(c.iov, o.left)
	fd := o.src.file.AsyncFD(iov, off)
	switch {
	case fd < 0: // what a short transfer left is not aligned any more
		c.end(i, errWouldWait)
	case len(l.backlog) > 0 || !l.engine.Start(uint64(i), o.write, fd, iov, off):
		l.backlog = append(l.backlog, i)
	}
}

// reap submits what has been started, ends what the kernel has done, and fills
// the room that it leaves.
func (c *Channel) reap() {
	l := &c.later
	// What the kernel refuses completes with its error; see transferred.
	_ = l.engine.Submit()
	l.finished = l.engine.Reap(l.finished[:0])
	if len(l.finished) == 0 {
		return
	}
	for _, done := range l.finished {
		c.transferred(int(done.ID), done)
	}
	waiting := l.backlog
	l.backlog, l.spare = l.spare[:0], waiting
	for _, i := range waiting {
		c.start(i)
	}
	// Also for what a short transfer has left.
	_ = l.engine.Submit()
}

// transferred takes one completion of the engine.
func (c *Channel) transferred(i int, done aio.Completion) {
	o := &c.later.ops[i]
	off := o.src.start + o.pos
	switch {
	case done.Err != 0:
		// Carried out once more, by a thread that may wait: if the error is
		// real it comes again, with the name of what failed.
		c.end(i, errWouldWait)
		return
	case done.N == 0 && o.write:
		c.end(i, errWouldWait)
		return
	case done.N == 0:
		c.end(i, fmt.Errorf("read %d bytes at byte %d of %s: %w", o.left, off, o.src.file.Name(), ErrTruncated))
		return
	}
	n := int64(done.N)
	o.src.seen(off, n)
	o.cur.advance(n)
	o.pos += n
	o.left -= n
	if o.left > 0 {
		c.start(i)
		return
	}
	if !o.write && o.src.sums != nil {
		c.end(i, c.verify(o.src, o.landing, o.begin, o.pos-o.begin, true))
		return
	}
	c.end(i, nil)
}

// end takes operation i off its request, and ends the request with its last one.
func (c *Channel) end(i int, err error) {
	l := &c.later
	o := &l.ops[i]
	r := o.req
	r.fail(err)
	if o.write {
		c.noteWrite(r)
	}
	c.pinsOf(o.write).drop(o.view.seq)
	c.disk.wakeQuiet()
	*o = operation{}
	l.free = append(l.free, i)
	l.active--
	if r.pending--; r.pending > 0 {
		return
	}
	if r.again && r.Err == nil {
		c.disk.crew.add(r)
		return
	}
	c.finish(r)
}

func (l *later) close() error {
	if l.engine == nil {
		return nil
	}
	return l.engine.Close()
}
