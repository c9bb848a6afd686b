package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"cowblk/backend"
	"cowblk/backend/control"
	"cowblk/backend/loglimit"
	"cowblk/cow"
	"cowblk/cow/store"
)

// Export is one disk that is offered on one socket.
//
// A second front-end waits until the first has left: two drivers on one disk would destroy it, and
// QEMU 7.2 exits when a connection is accepted and closed.
type Export struct {
	name     string
	opened   *store.Opened     // without Lock and Manifest: a raw file
	detached bool              // the disk was closed for another process
	serving  store.Serving     // recorded in the disk's lock
	path     string            // of the socket, or "fd N"
	listener *control.Listener // nil: conn is served, and nothing else

	dev       *backend.Device // set by setDevice
	log       *slog.Logger
	emit      func(event string, data any)
	connected atomic.Bool
	sessions  atomic.Uint64

	mu          sync.Mutex
	conn        *net.UnixConn
	peer        *FrontEnd     // at the other end of conn; nil: none, or not known
	pending     *net.UnixConn // accepted, served next
	pendingPeer *FrontEnd     // at the other end of pending
	suspended   *suspension   // nil: not suspended
	ended       chan struct{} // closed when Run has returned
}

// setDevice makes e an export of d. Run must not have been called.
func (e *Export) setDevice(dev *backend.Device, d *Daemon) {
	e.dev, e.log, e.emit, e.ended = dev, loglimit.New(d.log).With("disk", dev.Name()), d.emit,
		make(chan struct{})
	dev.Observe(backend.Observer{
		IOError: func(event backend.IOErrorEvent) { d.emit("COW_IO_ERROR", event) },
		Parked:  func(io *cow.Request) { d.space.onPark(dev, io) },
		Procs:   &d.procs,
	})
	_, policy := d.space.settings()
	dev.SetParking(policy == ENOSPCStop)
}

// Connected reports whether a front-end is connected, and the number of front-ends so far.
func (e *Export) Connected() (now bool, sessions uint64) {
	return e.connected.Load(), e.sessions.Load()
}

// Run serves front-ends until ctx is done. Then it drains the rings, closes connection and
// listener, and returns nil.
func (e *Export) Run(ctx context.Context) error {
	defer close(e.ended)
	release := context.AfterFunc(ctx, e.shutdown)
	defer release()
	defer e.closePending()
	if e.listener == nil {
		e.session(e.conn)
		return nil
	}
	for {
		conn, err := e.accept(ctx)
		switch {
		case err == nil:
			e.session(conn)
		case ctx.Err() != nil, errors.Is(err, net.ErrClosed):
			return nil
		case errors.Is(err, os.ErrDeadlineExceeded): // see suspend
		case temporary(err):
			e.log.Warn("accept failed: front-ends wait", "err", err)
			pause(ctx)
		default:
			return fmt.Errorf("disk %s: accept on %s: %w", e.dev.Name(), e.listener.Addr(), err)
		}
	}
}

// accept returns the next front-end to serve. A front-end that comes while the export is being
// suspended stays pending, for later or for another process. It is not closed: QEMU 7.2 would exit.
func (e *Export) accept(ctx context.Context) (*net.UnixConn, error) {
	e.waitResumed(ctx)
	e.mu.Lock()
	conn := e.pending
	e.pending, e.pendingPeer = nil, nil
	e.mu.Unlock()
	if conn == nil {
		var err error
		if conn, err = e.listener.AcceptUnix(); err != nil {
			return nil, err
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case ctx.Err() != nil:
		conn.Close()
		return nil, ctx.Err()
	case e.suspended != nil:
		e.pending, e.pendingPeer = conn, frontEndOf(conn)
		return nil, os.ErrDeadlineExceeded
	}
	e.conn = conn
	return conn, nil
}

// acceptRetry is the wait after an accept that failed for want of descriptors or memory. The
// front-end stays in the backlog.
const acceptRetry = 100 * time.Millisecond

// pause waits before the next accept.
func pause(ctx context.Context) {
	select {
	case <-ctx.Done():
	case <-time.After(acceptRetry):
	}
}

// temporary reports whether accept may succeed after err.
func temporary(err error) bool {
	var t interface{ Temporary() bool }
	return errors.As(err, &t) && t.Temporary() && !errors.Is(err, os.ErrDeadlineExceeded)
}

func (e *Export) session(conn *net.UnixConn) {
	who := frontEndOf(conn)
	e.mu.Lock()
	e.peer = who
	e.mu.Unlock()
	e.connected.Store(true)
	e.sessions.Add(1)
	e.log.Info("front-end connected", "front_end", who.String())
	e.emit("COW_CONNECTED", diskEvent{Disk: e.dev.Name()})
	end := e.watchPending()
	err := e.dev.Serve(conn, e.log)
	end()
	e.mu.Lock()
	e.peer = nil
	e.mu.Unlock()
	e.connected.Store(false)
	e.emit("COW_DISCONNECTED", diskEvent{e.dev.Name(), errorText(err)})
	switch {
	case err == nil:
		e.log.Info("front-end disconnected", "front_end", who.String(), "advice", reconnectAdvice)
	case backend.LacksResources(err):
		e.log.Error("connection closed: this process is out of descriptors or memory", "front_end",
			who.String(), "err", err)
	default:
		e.log.Warn("connection closed: the front-end broke the protocol", "front_end", who.String(),
			"err", err)
	}
}

// reconnectAdvice is logged when a front-end has left: the protocol does not tell whether it will
// come back.
const reconnectAdvice = "a front-end reconnects by itself if its chardev has reconnect; those that libvirt hot-plugs (virsh attach-device) have none: cowblk detach, then cowblk attach"

// diskEvent is the data of COW_CONNECTED and COW_DISCONNECTED.
type diskEvent struct {
	Disk  string `json:"disk"`
	Error string `json:"error,omitempty"` // how the front-end broke the protocol
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// shutdown ends Run: no new front-end, then every request in flight completes, then the connection
// is closed (see Device.Drain).
func (e *Export) shutdown() {
	if e.listener != nil {
		e.listener.Close()
	}
	e.dev.Drain()
	e.closeConn()
}

// closePending closes the connection of a front-end that will not be served.
func (e *Export) closePending() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.pending != nil {
		e.pending.Close()
		e.pending, e.pendingPeer = nil, nil
	}
}

func (e *Export) closeConn() {
	e.mu.Lock()
	conn := e.conn
	e.mu.Unlock()
	if conn != nil {
		conn.Close()
	}
}
