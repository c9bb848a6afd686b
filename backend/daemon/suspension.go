package daemon

import (
	"context"
	"net"
	"time"

	"cowblk/cow"
)

// suspension is one suspension of an export.
type suspension struct {
	begun chan struct{} // closed when nothing of the export uses the disk
	over  chan struct{} // closed by resume
}

// suspend ends the session as shutdown does and serves no other until resume: front-ends wait on
// the socket, which still listens. When it returns, nothing uses the disk. The export must have a
// listener; one caller at a time.
func (e *Export) suspend() {
	r := &suspension{begun: make(chan struct{}), over: make(chan struct{})}
	e.mu.Lock()
	e.suspended = r
	e.mu.Unlock()
	e.listener.SetDeadline(time.Unix(1, 0)) // ends an accept in progress
	e.dev.Drain()
	e.closeConn()
	select {
	case <-r.begun:
	case <-e.ended:
	}
}

// pendingConn returns the front-end that was accepted while the export was being suspended, or nil.
// The export keeps owning it.
func (e *Export) pendingConn() *net.UnixConn {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.pending
}

// resume ends a suspension; disk is served from now on.
func (e *Export) resume(disk *cow.Disk) {
	e.dev.Reopen(disk)
	e.listener.SetDeadline(time.Time{})
	e.mu.Lock()
	r := e.suspended
	e.suspended = nil
	e.mu.Unlock()
	close(r.over)
}

// waitResumed blocks the accept loop while the export is suspended, or until ctx is done.
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
