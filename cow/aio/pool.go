package aio

import (
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// poolThreads bounds the goroutines of one pool. Each blocks in one transfer at a time, on a thread
// of the operating system.
const poolThreads = 64

// pool is the engine on preadv and pwritev, called by goroutines that may block. Close waits for
// transfers that have begun: a thread inside preadv cannot be interrupted. On files and disks, the
// only objects for these calls (a FIFO returns ESPIPE at once), they end with the device's answer
// or its driver's time-out.
type pool struct {
	slots
	eventFD int
	started []uint32 // slots queued, not submitted
	ended   atomic.Int32
	limit   int

	mu      sync.Mutex
	work    sync.Cond
	pending fifo     // slots submitted, not begun
	done    []result // transfers ended, not reaped; ended is its length
	threads int      // number of goroutines
	idle    int      // of them waiting in work
	closed  bool
	all     sync.WaitGroup
}

// result is a transfer that has ended.
type result struct {
	slot  uint32
	n     int
	errno unix.Errno
}

// NewPool makes an engine on threads, which it starts when it needs them.
func NewPool(o Options) (Engine, error) {
	p, err := newPool(o)
	if err != nil {
		return nil, err
	}
	return p, nil
}

func newPool(o Options) (*pool, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	s, err := newSlots(o.Depth)
	if err != nil {
		return nil, err
	}
	p := &pool{
		slots:   s,
		eventFD: o.EventFD,
		limit:   min(o.Depth, poolThreads),
		started: make([]uint32, 0, o.Depth),
		pending: fifo{slots: make([]uint32, o.Depth)},
		done:    make([]result, 0, o.Depth),
	}
	p.work.L = &p.mu
	return p, nil
}

// Name implements Engine.
func (p *pool) Name() string { return "threads" }

// InFlight implements Engine.
func (p *pool) InFlight() int { return p.inUse() }

// Start implements Engine.
func (p *pool) Start(id uint64, write bool, fd int, iov []unix.Iovec, off int64) bool {
	slot, ok := p.take(id, write, fd, iov, off)
	if ok {
		p.started = append(p.started, slot)
	}
	return ok
}

// Submit implements Engine. It makes no system call and cannot fail.
func (p *pool) Submit() error {
	if len(p.started) == 0 {
		return nil
	}
	p.mu.Lock()
	for _, slot := range p.started {
		p.pending.push(slot)
	}
	// idle still counts goroutines that were woken and have taken nothing yet; pending counts the
	// operations that they will take.
	wake := min(len(p.started), p.idle)
	more := min(p.pending.n-p.idle, p.limit-p.threads)
	for range more {
		p.threads++
		p.all.Add(1)
		go p.run()
	}
	p.mu.Unlock()
	for range wake {
		p.work.Signal()
	}
	p.started = p.started[:0]
	return nil
}

// run is a thread of the pool: started by Submit, ended by Close.
func (p *pool) run() {
	defer p.all.Done()
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		for p.pending.n == 0 && !p.closed {
			p.idle++
			p.work.Wait()
			p.idle--
		}
		if p.closed {
			return
		}
		slot := p.pending.pop()
		// The slot does not change before its result was reaped.
		p.mu.Unlock()
		n, errno := transfer(&p.ops[slot])
		p.mu.Lock()
		p.done = append(p.done, result{slot: slot, n: n, errno: errno})
		p.ended.Store(int32(len(p.done)))
		if len(p.done) == 1 && p.eventFD > 0 {
			// Reap empties the list under the mutex: one signal is enough for everything in it, and
			// the next result is the first again.
			p.mu.Unlock()
			signal(p.eventFD)
			p.mu.Lock()
		}
	}
}

// transfer performs o and waits for it. The iovecs are outside Go's heap, so that their address is
// a number.
//
// The offset goes into the low word alone: the kernel ignores the high word on 64-bit machines
// (pos_from_hilo, fs/read_write.c), the only ones that this package supports.
func transfer(o *operation) (int, unix.Errno) {
	trap := uintptr(unix.SYS_PREADV)
	if o.write {
		trap = unix.SYS_PWRITEV
	}
	for {
		n, _, errno := unix.Syscall6(trap, uintptr(o.fd), o.iov, uintptr(o.count), uintptr(o.off), 0, 0)
		switch errno {
		case 0:
			return int(n), 0
		case unix.EINTR:
		default:
			return 0, errno
		}
	}
}

// Reap implements Engine.
func (p *pool) Reap(dst []Completion) []Completion {
	if p.ended.Load() == 0 {
		return dst
	}
	p.mu.Lock()
	for _, r := range p.done {
		dst = append(dst, Completion{ID: p.ops[r.slot].id, N: r.n, Err: r.errno})
		p.give(r.slot)
	}
	p.done = p.done[:0]
	p.ended.Store(0)
	p.mu.Unlock()
	return dst
}

// Close implements Engine.
func (p *pool) Close() error {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.work.Broadcast()
	p.all.Wait()
	p.started = p.started[:0]
	p.ended.Store(0)
	p.done = nil
	p.slots.release()
	return nil
}

// eventfdOne is written to an eventfd: any number but 0 will do, in either byte order.
var eventfdOne = []byte{1, 0, 0, 0, 0, 0, 0, 0}

// signal adds to an eventfd's counter. The counter may be full: then it is readable.
func signal(fd int) { unix.Write(fd, eventfdOne) }

// fifo is a queue of at most len(slots) slots.
type fifo struct {
	slots []uint32
	head  int
	n     int
}

func (q *fifo) push(slot uint32) {
	q.slots[(q.head+q.n)%len(q.slots)] = slot
	q.n++
}

func (q *fifo) pop() uint32 {
	slot := q.slots[q.head]
	q.head = (q.head + 1) % len(q.slots)
	q.n--
	return slot
}
