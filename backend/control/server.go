package control

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// ErrClosed says that the server or the connection was closed.
var ErrClosed = errors.New("control socket is closed")

// closeTimeout bounds how long Close waits for a client to read queued output.
const closeTimeout = 2 * time.Second

// Options configures a Server.
type Options struct {
	Log     *slog.Logger // nil: nothing is logged
	Version Version      // the daemon's
	Group   string       // name or number of a group that may connect; empty: none
	// GroupMay has the registered commands that members of Group may give. The server's own may be
	// given by all who may connect, and any other by the owner and root alone.
	GroupMay     map[string]bool
	MaxClients   int           // of owner and root, and as many others; 0: 32
	MaxQueue     int           // unread bytes at which a client is disconnected; 0: 1 MiB
	WriteTimeout time.Duration // for one write to a client; 0: 30 s
}

func (o Options) withDefaults() Options {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	o.MaxClients = cmp.Or(o.MaxClients, 32)
	// Each half of an outbox must hold two lines of maximum length.
	o.MaxQueue = max(cmp.Or(o.MaxQueue, 1<<20), 4*maxText)
	o.WriteTimeout = cmp.Or(o.WriteTimeout, 30*time.Second)
	return o
}

// Server is a control server on any number of sockets. All methods may be called from any
// goroutine.
type Server struct {
	opts Options
	wg   sync.WaitGroup // accept loops and clients

	mu            sync.Mutex
	commands      map[string]command
	listeners     []*Listener
	sessions      map[*session]struct{}
	refusalLogged bool // the refusal of clients was logged
	closed        bool
	done          chan struct{} // closed by Close
	running       int           // commands in handlers
	suspended     chan struct{} // see SuspendCommands; nil: not suspended
}

// NewServer returns a server without sockets. It has the commands qmp_capabilities, query-version,
// query-commands and two for the client of this package.
func NewServer(o Options) *Server {
	s := &Server{
		opts:     o.withDefaults(),
		commands: make(map[string]command),
		sessions: make(map[*session]struct{}),
		done:     make(chan struct{}),
	}
	s.register("query-version", command{own: true,
		run: Typed(func(context.Context, struct{}) (any, error) { return s.opts.Version, nil })})
	s.register("query-commands", command{own: true, run: Typed(s.queryCommands)})
	return s
}

// Listen makes a socket, see [ListenUnix]. Clients wait in its backlog until Serve.
func (s *Server) Listen(path string) error {
	l, err := ListenUnix(path, s.opts.Group)
	if err != nil {
		return err
	}
	return s.Add(l)
}

// Add adds an existing socket, which the server then owns.
func (s *Server) Add(l *Listener) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		l.Close()
		return ErrClosed
	}
	s.listeners = append(s.listeners, l)
	return nil
}

// Serve accepts clients on all sockets until Close and returns nil. It must be called once, after
// the last Listen.
func (s *Server) Serve() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return ErrClosed
	}
	for _, l := range s.listeners {
		s.wg.Go(func() { s.accept(l) })
	}
	s.mu.Unlock()
	<-s.done
	return nil
}

// accept is the accept loop of one socket.
func (s *Server) accept(l *Listener) {
	for {
		conn, err := l.AcceptUnix()
		if err == nil {
			s.admit(conn, l)
			continue
		}
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if errors.Is(err, os.ErrDeadlineExceeded) { // see SuspendCommands
			if suspended := s.suspension(); suspended != nil {
				select {
				case <-suspended:
				case <-s.done:
				}
			}
			continue
		}
		// Probably EMFILE; the client stays in the backlog.
		s.opts.Log.Warn("cannot accept on control socket", "socket", l.Path(), "err", err)
		select {
		case <-s.done:
			return
		case <-time.After(time.Second):
		}
	}
}

// admit starts a client's goroutines, or refuses the client.
func (s *Server) admit(conn *net.UnixConn, l *Listener) {
	peer, err := PeerOf(conn)
	if err == nil && l.checkPeers && !peer.Owner() && !peer.inGroup(conn, l.gid) {
		err = fmt.Errorf("%s was open to more users in the former process: "+
			"user %d is not in the group that may connect now", l.Path(), peer.UID)
	}
	if err != nil { // an unknown peer must not count as root
		s.opts.Log.Warn("control client refused", "err", err)
		conn.Close()
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		conn.Close()
		return
	}
	if n := s.countLike(peer); n >= s.opts.MaxClients {
		if !s.refusalLogged {
			s.refusalLogged = true
			s.opts.Log.Warn("control clients refused: too many", "connected", n,
				"max", s.opts.MaxClients)
		}
		// Does not block: the buffer of a new socket is empty.
		line, _ := encodeReply(nil, nil,
			errorf("%d clients are connected and no more are allowed: end one of them", n))
		conn.SetWriteDeadline(time.Now().Add(time.Second))
		conn.Write(line)
		conn.Close()
		return
	}
	c := newSession(s, conn, peer)
	s.sessions[c] = struct{}{}
	s.wg.Go(c.run)
}

// countLike counts the clients that are owners if peer is one, else those that are not. s.mu is
// held. Separate counts keep the group from locking out the owner.
func (s *Server) countLike(peer Peer) (n int) {
	for c := range s.sessions {
		if c.peer.Owner() == peer.Owner() {
			n++
		}
	}
	return n
}

// removeSession is the last action of a client's goroutine.
func (s *Server) removeSession(c *session) {
	s.mu.Lock()
	delete(s.sessions, c)
	s.refusalLogged = false
	s.mu.Unlock()
}

// Emit sends an event to every client that has finished negotiation. data is encoded as a JSON
// object; nil: an empty one. Emit never waits: a client whose queue is full is disconnected. Each
// client gets events in the order of the calls.
func (s *Server) Emit(event string, data any) {
	if data == nil {
		data = struct{}{}
	}
	raw, err := json.Marshal(data)
	s.mu.Lock()
	defer s.mu.Unlock()
	var line []byte
	if err == nil {
		// Under the lock, so that timestamps never go back within a stream.
		line, err = encodeEvent(event, raw, time.Now())
	}
	switch {
	case err != nil:
		s.opts.Log.Error("event cannot be encoded as JSON", "event", event, "err", err)
		return
	case len(line) > maxText:
		s.opts.Log.Error("event too long, not sent", "event", event,
			"bytes", len(line), "max", maxText)
		return
	}
	for c := range s.sessions {
		if c.events && !c.out.tryPut(line) {
			s.opts.Log.Warn("control client does not read: disconnected",
				"unread_max", s.opts.MaxQueue)
			c.abort()
		}
	}
}

// setEvents turns a client's events on or off. Every Emit is either queued before it returns or
// sees the change.
func (s *Server) setEvents(c *session, on bool) {
	s.mu.Lock()
	c.events = on
	s.mu.Unlock()
}

// Close removes the sockets and cancels running commands. It waits until they have returned and
// until replies and events are sent, for at most two seconds with a client that does not read, and
// closes all connections.
func (s *Server) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		s.wg.Wait()
		return nil
	}
	s.closed = true
	close(s.done)
	var first error
	for _, l := range s.listeners {
		if err := l.Close(); err != nil && first == nil {
			first = err
		}
	}
	for c := range s.sessions {
		c.drain()
	}
	s.mu.Unlock()
	s.wg.Wait()
	return first
}

// hungUp reports whether the peer has closed its socket (POLLHUP), not just its output with
// shutdown(SHUT_WR).
func hungUp(conn *net.UnixConn) bool {
	raw, err := conn.SyscallConn()
	if err != nil {
		return true
	}
	hungUp := false
	err = raw.Control(func(fd uintptr) {
		p := []unix.PollFd{{Fd: int32(fd)}}
		if n, err := unix.Poll(p, 0); err == nil && n > 0 {
			hungUp = p[0].Revents&(unix.POLLHUP|unix.POLLERR|unix.POLLNVAL) != 0
		}
	})
	return err != nil || hungUp
}

// Listeners returns the server's sockets.
func (s *Server) Listeners() []*Listener {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]*Listener(nil), s.listeners...)
}
