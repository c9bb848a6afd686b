package cow

import (
	"runtime/debug"
	"sync"
)

// Limits of a disk's thread pool.
const (
	maxWorkers     = 64 // as many requests of a disk block at once
	maxIdleWorkers = 4  // workers that stay when there is nothing to do
)

// threadPool carries out requests that would block a queue's thread: copy-ups of what is not in
// memory, first writes past the page cache or of blocks that another request is about to own,
// discards; without io_uring also reads from the device and overwrites with direct I/O. Its workers
// are goroutines, each with a synchronous channel of its own. They start when there is work and end
// when there is none, the last ones in stop.
type threadPool struct {
	disk *Disk

	mu       sync.Mutex
	cond     sync.Cond
	queue    requestList
	workers  int
	idle     int
	stopping bool
	ended    sync.WaitGroup
}

func newThreadPool(d *Disk) *threadPool {
	p := &threadPool{disk: d}
	p.cond.L = &p.mu
	return p
}

// add queues r, which completes through its channel.
func (p *threadPool) add(r *Request) {
	p.mu.Lock()
	p.queue.push(r)
	switch {
	case p.idle > 0:
		// Decremented here, so that the next request does not count this worker again.
		p.idle--
		p.cond.Signal()
	case p.workers < maxWorkers:
		p.workers++
		p.ended.Add(1)
		go p.worker()
	}
	p.mu.Unlock()
}

// worker is one goroutine of the pool.
func (p *threadPool) worker() {
	defer p.ended.Done()
	// Without this a fault on a guest's memory would end the process: see Channel.perform.
	debug.SetPanicOnFault(true)
	c := p.disk.makeChannel()
	if p.disk.addChannel(c, 0) == nil {
		defer p.disk.dropChannel(c, 0)
	}
	for {
		r := p.next()
		if r == nil {
			return
		}
		r.Err = c.perform(r)
		if r.waitsForFlush() {
			p.disk.flusher.add(r)
		} else {
			r.complete()
		}
	}
}

// next waits for a request; nil ends the worker.
func (p *threadPool) next() *Request {
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		if r := p.queue.pop(); r != nil {
			return r
		}
		if p.stopping || p.idle >= maxIdleWorkers {
			p.workers--
			return nil
		}
		p.idle++
		p.cond.Wait()
	}
}

// stop ends the workers. No request is queued, and none follows.
func (p *threadPool) stop() {
	p.mu.Lock()
	p.stopping = true
	p.cond.Broadcast()
	p.mu.Unlock()
	p.ended.Wait()
}
