package backend

import (
	"runtime"
	"sync"
)

// maxProcessors bounds GOMAXPROCS: a Go processor that nobody uses costs little,
// but the garbage collector visits all of them.
const maxProcessors = 64 + 2

// MaxProcs sees to it that running queues do not keep goroutines from running.
// A worker that looks for work instead of sleeping holds one of Go's processors
// while it does, and one that returns from its sleep has to find one free: with
// too few of them others wait until the scheduler takes one away by force, which
// was measured as 19 ms. So there is one for each queue that may look, and two
// for everything else: sessions, flushers, control.
//
// A change stops the world, hence only when a queue is started, and only upward
// until the last one is stopped.
type MaxProcs struct {
	mu     sync.Mutex
	queues int // running
	before int // GOMAXPROCS before the first of them was started
}

// acquire counts a queue that starts. A nil processors leaves Go as it is.
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

// release counts a queue that has been stopped.
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
