package backend

import (
	"runtime"
	"sync"
)

// maxProcessors bounds GOMAXPROCS. An unused Go processor costs little, but the garbage collector
// visits each.
const maxProcessors = 64 + 2

// MaxProcs raises GOMAXPROCS so that running queues do not keep other goroutines from running. A
// worker that polls holds one of Go's processors, and a worker that wakes up needs a free one. With
// too few processors other goroutines wait until the scheduler preempts one: 19 ms were measured.
// So there is one processor for each queue that may poll, and two for sessions, flushers and
// control.
//
// A change of GOMAXPROCS stops the world. So it changes only when a queue starts, and only upward
// until the last queue has stopped.
type MaxProcs struct {
	mu     sync.Mutex
	queues int // running
	before int // GOMAXPROCS before the first queue started
}

// acquire counts a queue that starts. On a nil MaxProcs it does nothing.
func (p *MaxProcs) acquire() {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	now := runtime.GOMAXPROCS(0)
	if p.queues == 0 {
		p.before = now
	}
	p.queues++
	if want := min(p.queues+2, maxProcessors); want > now {
		runtime.GOMAXPROCS(want)
	}
}

// release counts a queue that has stopped.
func (p *MaxProcs) release() {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.queues--; p.queues == 0 && runtime.GOMAXPROCS(0) > p.before {
		runtime.GOMAXPROCS(p.before)
	}
}
