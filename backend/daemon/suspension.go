package daemon

import (
	"context"
	"net"
	"time"

	"cowblk/cow"
)

// suspension is a suspension of an export.
type suspension struct {
	begun chan struct{} // closed when nothing of the export uses the disk any more
	over  chan struct{} // closed by resume
}

// suspend ends the session as shut does, and serves no other until resume: front-ends
// wait on the socket, which goes on listening. When it returns nothing uses the disk
// any more. For an export with a listener, and one caller at a time.
func (e *Export) suspend() {
	r := &suspension{begun: make(chan struct{}), over: make(chan struct{})}
	e.mu.Lock()
	e.suspended = r
	e.mu.Unlock()
	e.listener.SetDeadline(time.Unix(1, 0)) // ends an accept under way
	e.dev.Drain()
	e.closeConn()
	select {
	case <-r.begun:
	case <-e.ended:
	}
}

// pendingConn returns the front-end that was accepted while the export was being suspended,
// or nil. It stays the export's.
func (e *Export) pendingConn() *net.UnixConn {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.pending
}

// resume ends a suspension; disk is what is served from now on.
func (e *Export) resume(disk *cow.Disk) {
	e.dev.Reopen(disk)
	e.listener.SetDeadline(time.Time{})
	e.mu.Lock()
	r := e.suspended
	e.suspended = nil
	e.mu.Unlock()
	close(r.over)
}

// waitResumed holds the accept loop up while the export is suspended, or until ctx is done.
func (e *Export) waitResumed(ctx context.Context) {
	e.mu.Lock()
	r := e.suspended
	e.mu.Unlock()
	if r == nil {
		return
	}
	close(r.begun)
	select {
	case <-r.over:
	case <-ctx.Done():
	}
}
