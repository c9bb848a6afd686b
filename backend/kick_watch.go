package backend

import (
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"cowblk/vhost"
)

// kickGrace is how long a driver that kicks may leave its rings empty before that is told.
const kickGrace = 2 * time.Second

// kickWatch warns of a driver that kicks and has never put a request into a ring: with
// memory that is not shared (share=off) QEMU passes the memory's file on, the guest
// writes to copies of its pages, and what is seen here stays as it was.
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

// onKick is told by workers of kicks that have ended a sleep, and whether there was
// anything to do.
func (k *kickWatch) onKick(worked bool) {
	if worked {
		if !k.sawRequest.Load() { // a load is all that it costs from then on
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

// end ends with the session. A front-end that has gone before the time was over is not
// told of: it may have stopped as soon as it had kicked.
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
