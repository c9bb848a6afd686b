package daemon

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"cowblk/backend/control"
)

// FrontEnd is the process at the other end of a disk's connection, or one that waits for the disk.
type FrontEnd struct {
	PID   int32     `json:"pid"` // 0: in another PID namespace
	UID   uint32    `json:"uid"`
	Name  string    `json:"name,omitempty"` // comm of the process; empty: not readable, as in a sandbox
	Since time.Time `json:"since"`
}

// frontEndOf returns the peer of conn; nil: the kernel does not tell.
func frontEndOf(conn *net.UnixConn) *FrontEnd {
	p, err := control.PeerOf(conn)
	if err != nil {
		return nil
	}
	return &FrontEnd{PID: p.PID, UID: p.UID, Name: ProcessName(p.PID), Since: time.Now()}
}

// ProcessName returns the comm of a process; empty: not known.
func ProcessName(pid int32) string {
	if pid <= 0 {
		return ""
	}
	b, err := os.ReadFile("/proc/" + strconv.Itoa(int(pid)) + "/comm")
	if err != nil {
		return ""
	}
	return strings.TrimSuffix(string(b), "\n")
}

// String returns text such as "process 42 (qemu-system-x86) of user 107".
func (f *FrontEnd) String() string {
	if f == nil {
		return "an unknown process"
	}
	name := ""
	if f.Name != "" {
		name = fmt.Sprintf(" (%s)", f.Name)
	}
	return fmt.Sprintf("process %d%s of user %d", f.PID, name, f.UID)
}

// pendingPoll is the interval of checks whether a waiting front-end has left.
const pendingPoll = time.Second

// watchPending accepts the next front-end while one is served, and logs that it waits: in the
// backlog its process would be unknown. It is served when the present one has left. end ends the
// watch.
func (e *Export) watchPending() (end func()) {
	if e.listener == nil {
		return func() {}
	}
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for e.acceptPending(quit) {
		}
	}()
	return func() {
		close(quit)
		e.deadline(time.Unix(1, 0))
		<-done
		e.deadline(time.Time{})
	}
}

// deadline ends an accept in progress, or allows the next one, except during a suspension.
func (e *Export) deadline(t time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.suspended == nil {
		e.listener.SetDeadline(t)
	}
}

// acceptPending waits for the next front-end, or watches the one that waits. It returns false when
// quit is closed.
func (e *Export) acceptPending(quit <-chan struct{}) bool {
	select {
	case <-quit:
		return false
	default:
	}
	e.mu.Lock()
	held := e.pending
	e.mu.Unlock()
	if held != nil {
		return e.watchHangup(held, quit)
	}
	conn, err := e.listener.AcceptUnix()
	if err == nil {
		e.setPending(conn)
		return true
	}
	if !temporary(err) {
		return false
	}
	select {
	case <-quit:
		return false
	case <-time.After(acceptRetry):
		return true
	}
}

// setPending keeps a front-end that came too early, and logs it.
func (e *Export) setPending(conn *net.UnixConn) {
	who := frontEndOf(conn)
	e.mu.Lock()
	e.pending, e.pendingPeer = conn, who
	holder := e.peer
	e.mu.Unlock()
	if who != nil && holder != nil && who.PID == holder.PID && who.PID != 0 {
		e.log.Info("the front-end connects again and waits for the end of its former connection",
			"front_end", who.String())
		return
	}
	var since time.Time
	if holder != nil {
		since = holder.Since
	}
	e.log.Warn("another front-end waits until the present one leaves", "waiting", who.String(),
		"held_by", holder.String(), "held_since", since)
}

// watchHangup notices when the waiting front-end leaves.
func (e *Export) watchHangup(conn *net.UnixConn, quit <-chan struct{}) bool {
	tick := time.NewTicker(pendingPoll)
	defer tick.Stop()
	for {
		select {
		case <-quit:
			return false
		case <-tick.C:
		}
		if !gone(conn) {
			continue
		}
		e.mu.Lock()
		who := e.pendingPeer
		if e.pending == conn {
			e.pending, e.pendingPeer = nil, nil
			conn.Close()
		}
		e.mu.Unlock()
		e.log.Info("the waiting front-end has left", "front_end", who.String())
		return true
	}
}

// gone reports whether the peer has closed the connection.
func gone(conn *net.UnixConn) bool {
	raw, err := conn.SyscallConn()
	if err != nil {
		return true
	}
	over := false
	err = raw.Control(func(fd uintptr) {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
		if n, err := unix.Poll(p, 0); err == nil && n > 0 {
			over = p[0].Revents&(unix.POLLHUP|unix.POLLRDHUP|unix.POLLERR|unix.POLLNVAL) != 0
		}
	})
	return err != nil || over
}

// frontEnds returns the front-end that is served and the one that waits; nil: none.
func (e *Export) frontEnds() (holder, waiter *FrontEnd) {
	e.mu.Lock()
	defer e.mu.Unlock()
	holder = e.peer
	if e.pending != nil && !gone(e.pending) {
		waiter = e.pendingPeer
	}
	return holder, waiter
}
