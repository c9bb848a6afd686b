package cow

import (
	"errors"
	"fmt"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"cowblk/cow/layer"
	"cowblk/cow/vfs"
)

// Channel is one queue's way into a disk: it carries requests from Submit to
// Completed and owns everything that a request needs on the way, so that none
// allocates. It is not for concurrent use; any number of channels work on one
// disk at once.
//
// A channel is synchronous or asynchronous. What would wait for a device or for
// another request is waited for in the one's Submit; the other hands it to an
// I/O engine (reads, and direct overwrites) or to the disk's crew (the rest), so
// that what can be served at once never stands behind it.
type Channel struct {
	pins      pins
	disk      *Disk
	async     bool
	unflushed atomic.Bool // a write has completed since the last round began: see background.go

	inFlight int         // submitted, not yet returned by Completed
	done     requestList // completed on the caller's thread

	iov         []vfs.Iovec
	cur         cursor
	before      []byte    // content of an edge block ahead of a partial write
	after       []byte    // and behind it
	zeros       [1][]byte // scatter list for the edges of a write-zeroes
	scatter     [1][]byte // and for what a copy-up reads
	unitBuf     []byte    // a unit of a sealed layer's data, see verify
	checksums   []byte    // and what its table says
	claim       *claim
	setUnshared bool // the request being performed has set bits that would die with this process

	asyncIO     asyncIO // of an asynchronous channel
	completions completionQueue
}

// NewChannel adds a synchronous channel to the disk. Close it when its last
// request has been returned.
func (d *Disk) NewChannel() (*Channel, error) { return d.openChannel(false) }

// NewAsyncChannel adds an asynchronous channel to the disk. Submit and Completed
// must always be called from one goroutine locked to its thread, for a thread is
// what the kernel's I/O engine belongs to.
func (d *Disk) NewAsyncChannel() (*Channel, error) { return d.openChannel(true) }

func (d *Disk) openChannel(async bool) (*Channel, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("eventfd of a channel: %w", err)
	}
	c := d.makeChannel(fd)
	c.async = async
	if err := d.addChannel(c, 1); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return c, nil
}

func (d *Disk) makeChannel(fd int) *Channel {
	c := &Channel{
		disk:      d,
		iov:       make([]vfs.Iovec, 0, vfs.MaxIovecs),
		before:    make([]byte, d.blockSize),
		after:     make([]byte, d.blockSize),
		unitBuf:   make([]byte, layer.MaxChecksumUnit),
		checksums: make([]byte, checksumBatch),
		claim:     newClaim(),
	}
	c.completions.fd = fd
	return c
}

// Submit starts r. What needs no waiting is done here and now, on the caller's
// thread: positional I/O into the page cache is faster than any hand-over.
// Flushes never are: they run on the disk's flusher. Either way the outcome is in
// r.Err once Completed has returned r.
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
	case r.pending > 0: // its last operation ends it
		r.fail(err)
	case err == errWouldWait:
		c.disk.threadPool.add(r)
	default:
		r.Err = err
		c.finish(r)
	}
}

// perform carries r out, as far as it does not go on asynchronously: see
// Request.pending. errWouldWait, from an asynchronous channel only: nothing has
// happened that would be wrong to happen again.
//
// A fault on the caller's memory, which may be a guest's and have lost its
// backing, fails the request where it has been copied to or from here; the
// kernel's own copies answer EFAULT.
func (c *Channel) perform(r *Request) (err error) {
	defer faulted(&err)
	switch r.Op {
	case OpRead:
		return c.read(r)
	case OpWrite, OpDiscard, OpWriteZeroes:
		c.setUnshared = false
		err = c.modify(r)
		// Also if it is performed once more: it will not set those bits again then.
		// What it has overwritten may be a block whose bit dies with this process.
		r.mustFlush = r.mustFlush || c.setUnshared || c.disk.unshared.any()
		return err
	case OpFlush: // of a disk that has nothing to flush
		return nil
	}
	return fmt.Errorf("%w: %d", ErrOp, r.Op)
}

// faulted, deferred, makes an error of a fault on memory.
func faulted(err *error) {
	if p := recover(); p != nil {
		f, ok := p.(interface{ Addr() uintptr })
		if !ok {
			panic(p)
		}
		*err = fmt.Errorf("%w: address %#x", ErrFault, f.Addr())
	}
}

// finish completes r, performed, on the channel's own thread.
func (c *Channel) finish(r *Request) {
	if r.waitsForFlush() {
		c.disk.flusher.add(r)
		return
	}
	c.done.push(r)
}

// Completed appends the requests that have completed since the last call to
// dst, as far as dst's capacity goes (at least one when there is one and dst
// has no room at all), and takes back the eventfd's signal. Call it again while
// it fills dst: there may be more, and they do not signal any more.
//
// It is also where an asynchronous channel's I/O reaches the kernel: many
// requests in one call.
func (c *Channel) Completed(dst []*Request) []*Request {
	if c.asyncIO.active > 0 {
		c.reap()
	}
	// Armed without a request: its signal came after it had been taken, and may have
	// been read with the channel's FD. The next one would not signal.
	if c.completions.head.Load() != nil || c.completions.signalled.Load() {
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

// FD is an eventfd that becomes readable when completions arrive that Submit has
// not made itself. Completed resets it, but for the signals of the I/O engine:
// read it yourself, without blocking, before you call Completed, or you may find
// it readable for nothing. It belongs to the channel.
func (c *Channel) FD() int { return c.completions.fd }

// InFlight is the number of requests submitted and not yet returned by Completed.
func (c *Channel) InFlight() int { return c.inFlight }

// Close removes the channel from its disk. ErrInFlight if requests have not
// been collected yet.
func (c *Channel) Close() error {
	if c.inFlight > 0 {
		return fmt.Errorf("close channel: %d requests: %w", c.inFlight, ErrInFlight)
	}
	if !c.disk.dropChannel(c, 1) {
		return nil // closed before
	}
	return errors.Join(c.asyncIO.close(), c.completions.close())
}
