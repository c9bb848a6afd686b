package cow

import (
	"fmt"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"cowblk/cow/vfs"
)

// Channel is one queue's way into a disk: it carries requests from Submit to
// Completed and owns everything that a request needs on the way, so that none
// allocates. It is not for concurrent use; any number of channels work on one
// disk at once.
type Channel struct {
	pins pins
	disk *Disk

	inFlight int         // submitted, not yet returned by Completed
	done     requestList // completed on the caller's thread

	iov    []vfs.Iovec
	cur    cursor
	before []byte    // content of an edge block ahead of a partial write
	after  []byte    // and behind it
	zeros  [1][]byte // scatter list for the edges of a write-zeroes
	claim  *claim

	remote remoteList
}

// remoteList takes completions from the flusher's goroutine.
type remoteList struct {
	count atomic.Int32 // requests in list; lets Completed pass by without the mutex
	mu    sync.Mutex
	list  requestList
	fd    int     // eventfd
	armed bool    // fd is readable
	word  [8]byte // eventfd's number, kept here so that no call allocates
}

// NewChannel adds a channel to the disk. Close it when its last request has
// been returned.
func (d *Disk) NewChannel() (*Channel, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("eventfd of a channel: %w", err)
	}
	c := &Channel{
		disk:   d,
		iov:    make([]vfs.Iovec, 0, vfs.MaxIovecs),
		before: make([]byte, d.blockSize),
		after:  make([]byte, d.blockSize),
		zeros:  [1][]byte{},
		claim:  newClaim(),
	}
	c.remote.fd = fd
	if err := d.addChannel(c); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return c, nil
}

// Submit starts r. Reads and writes are done here and now, on the caller's
// thread: positional I/O into the page cache is faster than any hand-over
// (an asynchronous engine for what would block has its place behind the same
// two calls). Flushes never are: they run on the disk's flusher. Either way the
// outcome is in r.Err once Completed has returned r.
func (c *Channel) Submit(r *Request) {
	r.ch, r.next, r.Err = c, nil, nil
	c.inFlight++
	switch r.Op {
	case OpRead:
		r.Err = c.read(r)
	case OpWrite, OpDiscard, OpWriteZeroes:
		r.Err = c.modify(r)
		if r.Err == nil && r.FUA {
			c.disk.flusher.add(r)
			return
		}
	case OpFlush:
		if !c.disk.ReadOnly() {
			c.disk.flusher.add(r)
			return
		}
	default:
		r.Err = fmt.Errorf("%w: %d", ErrOp, r.Op)
	}
	c.done.push(r)
}

// Completed appends the requests that have completed since the last call to
// dst, as far as dst's capacity goes (at least one when there is one and dst
// has no room at all), and takes back the eventfd's signal. Call it again while
// it fills dst: there may be more, and they do not signal any more.
func (c *Channel) Completed(dst []*Request) []*Request {
	if c.remote.count.Load() != 0 {
		c.remote.drainTo(&c.done)
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

// FD is an eventfd that is readable while completions wait that arrived from
// another goroutine; Completed resets it. Those that Submit completes itself do
// not signal. It belongs to the channel.
func (c *Channel) FD() int { return c.remote.fd }

// InFlight is the number of requests submitted and not yet returned by Completed.
func (c *Channel) InFlight() int { return c.inFlight }

// Close removes the channel from its disk. ErrInFlight if requests have not
// been collected yet.
func (c *Channel) Close() error {
	if c.inFlight > 0 {
		return fmt.Errorf("close channel: %d requests: %w", c.inFlight, ErrInFlight)
	}
	if !c.disk.dropChannel(c) {
		return nil // closed before
	}
	return unix.Close(c.remote.fd)
}

// complete hands r to its channel from another goroutine.
func (r *Request) complete() {
	l := &r.ch.remote
	l.mu.Lock()
	l.list.push(r)
	l.count.Add(1)
	if !l.armed {
		l.armed = true
		// The counter is at 0, so that the write cannot find it full; which
		// number it adds (the byte order decides) does not matter.
		l.word = [8]byte{0: 1}
		unix.Write(l.fd, l.word[:])
	}
	l.mu.Unlock()
}

func (l *remoteList) drainTo(done *requestList) {
	l.mu.Lock()
	for r := l.list.pop(); r != nil; r = l.list.pop() {
		done.push(r)
	}
	l.count.Store(0)
	if l.armed {
		unix.Read(l.fd, l.word[:])
		l.armed = false
	}
	l.mu.Unlock()
}
