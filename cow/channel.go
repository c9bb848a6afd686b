package cow

import (
	"errors"
	"fmt"
	"sync/atomic"

	"cowblk/cow/layer"
	"cowblk/cow/pagecache"
	"cowblk/cow/vfs"
)

// Channel is one queue's way into a disk: it carries requests from Submit to Completed and owns all
// buffers that a request needs, so that requests do not allocate. It is not for concurrent use; any
// number of channels work on one disk at once.
//
// A request that would wait for a device or for another request blocks in Submit of a synchronous
// channel. An asynchronous one hands it to an I/O engine (reads, and direct overwrites) or to the
// disk's thread pool (the rest; all without io_uring), so that no other request waits behind it.
type Channel struct {
	pins      pins
	disk      *Disk
	async     bool
	unflushed atomic.Bool // a write has completed since the last round began: see background.go

	inFlight int         // submitted, not yet returned by Completed
	done     requestList // completed on the caller's thread

	iov         []vfs.Iovec
	cur         cursor
	copies      pagecache.Copies
	leading     []byte    // content of an edge block ahead of a partial write
	trailing    []byte    // and behind it
	zeros       [1][]byte // scatter list for the edges of a write-zeroes
	scatter     [1][]byte // scatter list of a copy-up
	unitBuf     []byte    // one unit of a sealed layer's data, see verify
	checksums   []byte    // the units' checksums, from the layer's table
	claim       *claim
	setUnshared bool // the current request has set bits that no shared map has

	asyncIO     asyncIO // of an asynchronous channel
	completions completionQueue
}

// NewChannel adds a synchronous channel to the disk. Close it after Completed has returned its last
// request.
func (d *Disk) NewChannel() (*Channel, error) { return d.openChannel(false) }

// NewAsyncChannel adds an asynchronous channel to the disk. Call Submit and Completed from one
// goroutine that is locked to its thread: the kernel's I/O engine belongs to a thread.
func (d *Disk) NewAsyncChannel() (*Channel, error) { return d.openChannel(true) }

func (d *Disk) openChannel(async bool) (*Channel, error) {
	c := d.makeChannel()
	c.async = async
	if err := c.completions.notifier.Open(); err != nil {
		return nil, err
	}
	if err := d.addChannel(c, 1); err != nil {
		return nil, errors.Join(err, c.completions.close())
	}
	return c, nil
}

// makeChannel makes a channel for perform alone: nothing completes on it.
func (d *Disk) makeChannel() *Channel {
	return &Channel{
		disk:      d,
		iov:       make([]vfs.Iovec, 0, vfs.MaxIovecs),
		leading:   make([]byte, d.blockSize),
		trailing:  make([]byte, d.blockSize),
		unitBuf:   make([]byte, layer.MaxChecksumUnit),
		checksums: make([]byte, checksumBatch),
		claim:     newClaim(),
	}
}

// Submit starts r. What needs no waiting is done at once, on the caller's thread: positional I/O
// into the page cache is faster than passing it to another thread. Flushes run on the disk's
// flusher. In either case r.Err is valid once Completed has returned r.
func (c *Channel) Submit(r *Request) {
	r.prefetched.view = 0
	c.submit(r)
}

func (c *Channel) submit(r *Request) {
	r.ch, r.next, r.Err, r.pending, r.retryBlocking, r.mustFlush = c, nil, nil, 0, false, false
	c.inFlight++
	if r.Op == OpFlush && !c.disk.ReadOnly() {
		c.disk.flusher.add(r)
		return
	}
	err := c.perform(r)
	switch {
	case r.pending > 0: // endOperation completes it
		r.fail(err)
	case err == errWouldWait:
		c.disk.threadPool.add(r)
	default:
		r.Err = err
		c.finish(r)
	}
}

// perform carries out r, as far as it does not continue asynchronously (see Request.pending).
// errWouldWait, on an asynchronous channel only: r must be performed again by a thread that may
// block, which is harmless.
//
// Memory of the caller, such as a guest's, may have lost its backing: a fault in a copy here fails
// the request; the kernel's own copies return EFAULT.
func (c *Channel) perform(r *Request) (err error) {
	defer faulted(&err)
	switch r.Op {
	case OpRead:
		return c.read(r)
	case OpWrite, OpDiscard, OpWriteZeroes:
		c.setUnshared = false
		err = c.modify(r)
		// A request that is performed again does not set those bits again, so the flag stays. An
		// overwritten block may be one whose bit no shared map has.
		r.mustFlush = r.mustFlush || c.setUnshared || c.disk.unshared.any()
		return err
	case OpFlush: // read-only: nothing to flush
		return nil
	}
	return fmt.Errorf("%w: %d", ErrOp, r.Op)
}

// faulted is deferred and turns a fault on memory into an error.
func faulted(err *error) {
	if p := recover(); p != nil {
		f, ok := p.(interface{ Addr() uintptr })
		if !ok {
			panic(p)
		}
		*err = fmt.Errorf("%w: address %#x", ErrFault, f.Addr())
	}
}

// finish completes r on the channel's own thread.
func (c *Channel) finish(r *Request) {
	if r.waitsForFlush() {
		c.disk.flusher.add(r)
		return
	}
	c.done.push(r)
}

// Completed appends to dst the requests that have completed since the last call, up to dst's
// capacity (at least one if dst has no room), and resets the eventfd. If it has filled dst, call it
// again: there may be more, for which the eventfd is not signalled again.
//
// It also submits the channel's asynchronous I/O to the kernel, many operations in one call.
func (c *Channel) Completed(dst []*Request) []*Request {
	if c.asyncIO.active > 0 {
		c.reap()
	}
	// Signalled without a request: the eventfd was written after its request had been taken, and
	// may have been read by the user of FD. Without drainTo the next completion would not write it.
	if c.completions.head.Load() != nil || c.completions.notifier.Pending() {
		c.completions.drainTo(&c.done)
	}
	for c.done.head != nil {
		dst = append(dst, c.done.pop())
		c.inFlight--
		if len(dst) == cap(dst) {
			break
		}
	}
	return dst
}

// FD returns an eventfd that becomes readable when completions arrive that Submit has not made
// itself. Completed resets it, except for signals of the I/O engine: read it, without blocking,
// before Completed, or it may stay readable for nothing. It belongs to the channel.
func (c *Channel) FD() int { return c.completions.notifier.FD() }

// InFlight returns the number of requests submitted and not yet returned by Completed.
func (c *Channel) InFlight() int { return c.inFlight }

// Close removes the channel from its disk. ErrInFlight: Completed has not returned all requests
// yet.
func (c *Channel) Close() error {
	if c.inFlight > 0 {
		return fmt.Errorf("close channel: %d requests: %w", c.inFlight, ErrInFlight)
	}
	if !c.disk.dropChannel(c, 1) {
		return nil // closed before
	}
	return errors.Join(c.asyncIO.close(), c.completions.close())
}

// SubmitBatch is Submit for each of rs, in order. It looks the owners of all reads up before the
// first is served (see prefetch). Reads that follow each other share a pin, so that the loads of
// one need not wait for the stores of the one before.
func (c *Channel) SubmitBatch(rs []*Request) {
	if len(rs) == 1 {
		c.Submit(rs[0])
		return
	}
	c.cacheReadPin()
	c.prefetch(c.pinRead(), rs)
	for _, r := range rs {
		if r.Op == OpRead {
			c.cacheReadPin()
		} else {
			c.releaseReadPin() // a write may take long
		}
		c.submit(r)
	}
	c.releaseReadPin()
}

// waitsForFlush reports whether r, which was performed, must be durable before it completes.
func (r *Request) waitsForFlush() bool {
	return (r.FUA || r.mustFlush) && r.Err == nil &&
		(r.Op == OpWrite || r.Op == OpDiscard || r.Op == OpWriteZeroes)
}

// requestList is a first-in first-out list linked through Request.next, so that queueing does not
// allocate.
type requestList struct{ head, tail *Request }

func (l *requestList) push(r *Request) {
	r.next = nil
	if l.tail == nil {
		l.head = r
	} else {
		l.tail.next = r
	}
	l.tail = r
}

func (l *requestList) pop() *Request {
	r := l.head
	if r == nil {
		return nil
	}
	l.head = r.next
	if l.head == nil {
		l.tail = nil
	}
	r.next = nil
	return r
}

// take removes and returns everything in l.
func (l *requestList) take() requestList {
	t := *l
	*l = requestList{}
	return t
}

// pins are the marks of one channel on the views that its requests in flight use. Only the
// channel's own thread stores them, so that hits of one queue share no cache line with another; a
// promotion reads the pins of all channels. (A shared counter per view would cost every request two
// contended atomic operations, for an operation that happens once a day.)
type pins struct {
	_          [64]byte
	reads      pinState
	writes     pinState
	readCached bool // the read pin stays for the next read: see SubmitBatch
	_          [40]byte
}

// pinState is the pins of one kind of request, reads or writes.
type pinState struct {
	oldest    atomic.Uint64 // seq of the oldest view in use, 0: none
	current   uint64        // seq of the request that Submit is serving, 0: none
	asyncRefs []asyncRef    // of operations in flight, oldest view first
}

// set pins view seq for the request that Submit is serving.
func (p *pinState) set(seq uint64) {
	p.current = seq
	if len(p.asyncRefs) == 0 {
		p.oldest.Store(seq)
	}
}

// clear removes the pin of the request that Submit is serving.
func (p *pinState) clear() {
	p.current = 0
	if len(p.asyncRefs) == 0 {
		p.oldest.Store(0)
	}
}

// olderThan reports whether a request is in flight on a view before seq.
func (p *pinState) olderThan(seq uint64) bool {
	oldest := p.oldest.Load()
	return oldest != 0 && oldest < seq
}

// pinRead pins the current view for the channel's read.
//
// The second load makes this safe. Loads and stores of sync/atomic have one order: either the
// second load comes after the store of a swap and sees the new view, or the pin was stored before
// the swap, and a reader of the pins after the swap sees it.
//
// A cached pin that names the current view was stored before the view was loaded here, which is as
// good.
func (c *Channel) pinRead() *view {
	for {
		v := c.disk.view.Load()
		if c.pins.reads.current == v.seq {
			return v
		}
		c.pins.reads.set(v.seq)
		if c.disk.view.Load() == v {
			return v
		}
	}
}

// pinWrite pins the current view for the channel's write, as pinRead does. While several disks are
// being swapped it waits, on an asynchronous channel too: that takes microseconds, and workers of
// the thread pool that start then would compete with the swap for processors and the disk's mutex.
func (c *Channel) pinWrite() *view {
	for {
		v := c.disk.view.Load()
		if v.gate != nil {
			<-v.gate
			continue
		}
		c.pins.writes.set(v.seq)
		if c.disk.view.Load() == v {
			return v
		}
		c.unpinWrite()
	}
}

func (c *Channel) unpinRead() {
	if c.pins.readCached {
		return
	}
	c.pins.reads.clear()
	c.disk.wakeSynchronize()
}

// cacheReadPin makes unpinRead leave the pin for the next pinRead, until releaseReadPin.
func (c *Channel) cacheReadPin() { c.pins.readCached = true }

func (c *Channel) releaseReadPin() {
	c.pins.readCached = false
	if c.pins.reads.current != 0 {
		c.unpinRead()
	}
}

func (c *Channel) unpinWrite() {
	c.pins.writes.clear()
	c.disk.wakeSynchronize()
}

// wakeSynchronize wakes the goroutines in synchronize. If there are none it is one load of a word
// that hardly ever changes. The waiter increments the count before it reads the pins; the caller
// here clears its pin before it reads the count: one of the two sees the other.
func (d *Disk) wakeSynchronize() {
	if d.synchronizing.waiting.Load() == 0 {
		return
	}
	// With the mutex held, the waiter has either not read the pins yet or sleeps.
	d.synchronizing.mu.Lock()
	d.synchronizing.cond.Broadcast()
	d.synchronizing.mu.Unlock()
}
