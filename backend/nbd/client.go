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

// acceptRetry is the delay after a failed accept, probably for lack of file descriptors.
const acceptRetry = 100 * time.Millisecond

// client is one connection. The fields below conn are under Server.mu.
type client struct {
	conn net.Conn
	from string // for the log

	number      uint64  // in the order of arrival
	export      *export // pinned; nil: none yet
	established bool    // the handshake is over
	closing     bool    // the server has closed conn, or waits for the client to close it
}

// disconnect makes c's goroutine end soon. The caller holds Server.mu.
func (c *client) disconnect() {
	c.closing = true
	c.conn.Close()
}

// accept is the accept loop of one socket.
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
		s.log.Warn("cannot accept on NBD socket", "socket", l.addr.String(), "err", err)
		select {
		case <-s.done:
			return
		case <-time.After(acceptRetry):
		}
	}
}

// admit starts a client's goroutine, or refuses the client.
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
	s.log.Warn("NBD client refused: too many connections", "client", from,
		"max", s.opts.Connections)
}

// addClient starts c's goroutine; false: there are too many clients.
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

// makeRoom reports whether one more client may connect. At the limit it disconnects the oldest
// client that is still in its handshake. Closing clients do not count, but are bounded, too.
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
	// A panic in the library must not end a process that serves guests.
	defer func() {
		if p := recover(); p != nil {
			s.opts.Log.Error("panic in NBD client's goroutine", "client", c.from, "panic", p,
				"stack", string(debug.Stack()))
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

// awaitClose half-closes the connection of a client that has sent NBD_CMD_DISC, and waits for the
// client to close it. The client does not count as connected meanwhile. If the server closed first
// on AF_VSOCK, Linux would return ENOTCONN for the client's shutdown (vsock_shutdown clears
// SOCK_DONE), which nbdcopy reports as a failed copy.
func (s *Server) awaitClose(c *client, g *guard) {
	s.mu.Lock()
	s.unpin(c)
	disconnected := c.closing
	c.closing = true
	s.mu.Unlock()
	half, ok := c.conn.(interface{ CloseWrite() error })
	if disconnected || !ok || half.CloseWrite() != nil {
		return
	}
	c.conn.SetReadDeadline(time.Now().Add(s.opts.CloseTime))
	_, _ = g.br.ReadByte() // any result ends the wait
}

// removeClient is the last action of a client's goroutine.
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
		s.log.Warn("NBD connection ended", "client", c.from, "export", g.export.Name,
			"read", g.sent, "err", err)
	case g.established():
		s.log.Info("NBD client disconnected", "client", c.from, "export", g.export.Name,
			"read", g.sent)
	default:
		s.opts.Log.Debug("NBD client disconnected during the handshake", "client", c.from)
	}
}

// Reasons to refuse an export.
var (
	errNoExport = errors.New("no such export")
	errTooMany  = errors.New("too many connections to this export")
)

// pin gives c the export of a name and releases c's former one. The empty name stands for the only
// export.
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

// unpin releases c's export. The caller holds s.mu.
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

// establish ends c's handshake, after which makeRoom does not disconnect c.
func (s *Server) establish(c *client) {
	s.mu.Lock()
	c.established = true
	c.export.total++
	name := c.export.name
	s.mu.Unlock()
	s.log.Info("NBD client connected", "client", c.from, "export", name)
}
