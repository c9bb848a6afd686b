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

// FrontEnd is a process that a disk is connected to, or that waits for it.
type FrontEnd struct {
	PID   int32     `json:"pid"` // 0: of another PID namespace
	UID   uint32    `json:"uid"`
	Name  string    `json:"name,omitempty"` // of its program (comm); empty: this process cannot read it, as when it is confined
	Since time.Time `json:"since"`
}

// frontEndOf says who has connected; nil: the kernel does not say.
func frontEndOf(conn *net.UnixConn) *FrontEnd {
	p, err := control.PeerOf(conn)
	if err != nil {
		return nil
	}
	return &FrontEnd{PID: p.PID, UID: p.UID, Name: ProcessName(p.PID), Since: time.Now()}
}

// ProcessName is a process's comm; empty: not known.
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

// String says it for a person: "process 42 (qemu-system-x86) of user 107".
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

// hangupPoll is how often a front-end that waits is looked after.
const hangupPoll = time.Second

// watchPending accepts, while a front-end is served, the next one, and says that it waits:
// from the backlog it could not be seen who it is. It is served when the present one has
// gone. end ends the look-out.
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

// deadline ends an accept under way, or lets the next one be, unless a suspension has its
// own will.
func (e *Export) deadline(t time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.suspended == nil {
		e.listener.SetDeadline(t)
	}
}

// acceptPending waits for the next front-end, or looks after the one that waits. False: that
// is over.
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

// setPending keeps a front-end that has come too early, and says so.
func (e *Export) setPending(conn *net.UnixConn) {
	who := frontEndOf(conn)
	e.mu.Lock()
	e.pending, e.pendingPeer = conn, who
	holder := e.peer
	e.mu.Unlock()
	if who != nil && holder != nil && who.PID == holder.PID && who.PID != 0 {
		e.log.Info("the front-end connects again, and waits until its former connection has ended", "front_end", who.String())
		return
	}
	var since time.Time
	if holder != nil {
		since = holder.Since
	}
	e.log.Warn("another front-end waits for this disk, until the one that has it goes", "waiting", who.String(), "held_by", holder.String(), "held_since", since)
}

// watchHangup notices that the front-end that waits has given up.
func (e *Export) watchHangup(conn *net.UnixConn, quit <-chan struct{}) bool {
	tick := time.NewTicker(hangupPoll)
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
		e.log.Info("the front-end that waited for this disk has gone", "front_end", who.String())
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

// frontEnds are the one that is served and the one that waits; nil: none.
func (e *Export) frontEnds() (holder, waiter *FrontEnd) {
	e.mu.Lock()
	defer e.mu.Unlock()
	holder = e.peer
	if e.pending != nil && !gone(e.pending) {
		waiter = e.pendingPeer
	}
	return holder, waiter
}
