package nbd

import (
	"errors"
	"fmt"
	"io"
	"net"
	"runtime/debug"
	"time"

	"github.com/pojntfx/go-nbd/pkg/server"
)

// acceptRetry is how long to wait after an accept that failed, most likely for want
// of file descriptors.
const acceptRetry = 100 * time.Millisecond

// client is one connection. The fields below conn are under Server.mu.
type client struct {
	conn net.Conn
	from string // for the log

	number      uint64  // in the order of arrival
	export      *export // pinned; nil: none yet
	established bool    // the handshake is over
	closing     bool    // the server has closed conn, or waits for the client to
}

// disconnect ends c's goroutine soon. The caller holds Server.mu.
func (c *client) disconnect() {
	c.closing = true
	c.conn.Close()
}

// accept is one socket's accept loop.
func (s *Server) accept(l *listener) {
	for {
		conn, err := l.Accept()
		if err == nil {
			s.admit(conn, l.addr)
			continue
		}
		select {
		case <-s.done:
			return
		default:
		}
		s.log.warn("NBD socket cannot accept", "socket", l.addr.String(), "err", err)
		select {
		case <-s.done:
			return
		case <-time.After(acceptRetry):
		}
	}
}

// admit starts a client's goroutine, or turns it away.
func (s *Server) admit(conn net.Conn, at Address) {
	from := at.String()
	if at.Network != "unix" {
		from = conn.RemoteAddr().String()
	}
	if s.addClient(&client{conn: conn, from: from}) {
		return
	}
	conn.Close()
	select {
	case <-s.done:
		return
	default:
	}
	s.log.warn("NBD client turned away: too many are connected", "client", from, "max", s.opts.Connections)
}

// addClient starts c's goroutine; false: there is no room.
func (s *Server) addClient(c *client) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || !s.makeRoom() {
		return false
	}
	s.accepted++
	c.number = s.accepted
	s.clients[c] = struct{}{}
	s.wg.Go(func() { s.serve(c) })
	return true
}

// makeRoom reports whether one more client may come. If all places are taken, the
// oldest client that is still in its handshake is disconnected. Those on their way
// out hold no place, but there may not be any number of them either.
func (s *Server) makeRoom() bool {
	var oldest *client
	connected := 0
	for c := range s.clients {
		if c.closing {
			continue
		}
		connected++
		if !c.established && (oldest == nil || c.number < oldest.number) {
			oldest = c
		}
	}
	switch {
	case len(s.clients) >= 2*s.opts.Connections:
		return false
	case connected < s.opts.Connections:
		return true
	case oldest == nil:
		return false
	}
	oldest.disconnect()
	return true
}

// serve is a client's goroutine.
func (s *Server) serve(c *client) {
	defer s.removeClient(c)
	// The library's panic, if ever there is one, must not end a process that serves
	// guests too.
	defer func() {
		if p := recover(); p != nil {
			s.opts.Log.Error("NBD client's goroutine panicked", "client", c.from, "panic", p, "stack", string(debug.Stack()))
		}
	}()
	g := newGuard(s, c)
	err := server.Handle(g, []*server.Export{&g.export}, &g.options)
	if err == nil {
		err = g.finish()
	}
	s.report(c, g, err)
	if g.phase == atEnd {
		s.awaitClose(c, g)
	}
}

// awaitClose tells a client that said goodbye that there is nothing more to come, and
// lets it close its end first; it holds no place meanwhile. On AF_VSOCK, Linux gives
// a client that shuts its end down after the server has closed ENOTCONN instead of
// the end of the connection (vsock_shutdown clears SOCK_DONE), which nbdcopy takes
// for a failed copy.
func (s *Server) awaitClose(c *client, g *guard) {
	s.mu.Lock()
	s.unpin(c)
	gone := c.closing
	c.closing = true
	s.mu.Unlock()
	half, ok := c.conn.(interface{ CloseWrite() error })
	if gone || !ok || half.CloseWrite() != nil {
		return
	}
	c.conn.SetReadDeadline(time.Now().Add(s.opts.CloseTime))
	_, _ = g.br.ReadByte() // the end, or what must not be there: either way it is over
}

// removeClient is the last thing that a client's goroutine does.
func (s *Server) removeClient(c *client) {
	c.conn.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unpin(c)
	delete(s.clients, c)
}

// report logs how a connection ended.
func (s *Server) report(c *client, g *guard, err error) {
	s.mu.Lock()
	quiet := c.closing || err == nil || errors.Is(err, io.EOF)
	s.mu.Unlock()
	switch {
	case !quiet:
		s.log.warn("NBD connection ended", "client", c.from, "export", g.export.Name, "read", g.sent, "err", err)
	case g.established():
		s.log.info("NBD client disconnected", "client", c.from, "export", g.export.Name, "read", g.sent)
	default:
		s.opts.Log.Debug("NBD client left during the handshake", "client", c.from)
	}
}

// Reasons for which a name cannot be had.
var (
	errNoExport = errors.New("no such export")
	errTooMany  = errors.New("too many connections to this export")
)

// pin gives the export of a name to c, instead of what it had. The empty name is
// the only export's, if there is one alone.
func (s *Server) pin(c *client, name string) (*export, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unpin(c)
	e := s.exports[name]
	if e == nil && name == "" && len(s.exports) == 1 {
		for _, e = range s.exports {
		}
	}
	if e == nil || s.closed {
		return nil, errNoExport
	}
	if e.clients >= s.opts.PerExport {
		return nil, fmt.Errorf("%w: at most %d", errTooMany, s.opts.PerExport)
	}
	e.clients++
	c.export = e
	return e, nil
}

// unpin takes c's export back. The caller holds s.mu.
func (s *Server) unpin(c *client) {
	e := c.export
	if e == nil {
		return
	}
	c.export = nil
	e.clients--
	if e.removed && e.clients == 0 {
		close(e.drained)
	}
}

// establish ends c's handshake: from here on it makes no room for others.
func (s *Server) establish(c *client) {
	s.mu.Lock()
	c.established = true
	c.export.total++
	name := c.export.name
	s.mu.Unlock()
	s.log.info("NBD client connected", "client", c.from, "export", name)
}
