package backend

import (
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"cowblk/vhost"
)

// kickGrace is the time for which a driver that kicks may leave its rings empty before a warning.
const kickGrace = 2 * time.Second

// kickWatch warns of a driver that kicks and never puts a request into a ring. With memory that is
// not shared (share=off) QEMU passes the memory's file descriptor, the guest writes to copies of
// its pages, and this process never sees them.
type kickWatch struct {
	armed      atomic.Bool // no kick has come in this session
	sawRequest atomic.Bool // a kick came with a request

	mu    sync.Mutex
	check func()      // nil: no session
	timer *time.Timer // nil: no kick yet
}

// begin starts watching a session of d. log gets the warning.
func (k *kickWatch) begin(d *Device, log *slog.Logger) {
	before := d.requests()
	k.mu.Lock()
	defer k.mu.Unlock()
	k.check = func() {
		if !k.sawRequest.Load() && d.requests() == before {
			log.Warn("the driver kicks, and its rings stay empty in the memory that the front-end shares: it may not be the guest's memory", "advice", vhost.MemoryAdvice)
		}
	}
	k.sawRequest.Store(false)
	k.armed.Store(true)
}

// onKick is called by workers after a kick has ended a sleep; worked: there was something to do.
func (k *kickWatch) onKick(worked bool) {
	if worked {
		if !k.sawRequest.Load() { // the only cost from then on: a load
			k.sawRequest.Store(true)
		}
		return
	}
	if !k.armed.Load() || !k.armed.Swap(false) {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.check != nil {
		k.timer = time.AfterFunc(kickGrace, k.check)
	}
}

// end ends the watch with the session. A front-end that left within kickGrace causes no warning: it
// may have stopped right after its kick.
func (k *kickWatch) end() {
	k.armed.Store(false)
	k.mu.Lock()
	defer k.mu.Unlock()
	k.check = nil
	if k.timer != nil {
		k.timer.Stop()
		k.timer = nil
	}
}
