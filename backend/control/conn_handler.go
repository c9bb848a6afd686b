package control

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"time"
)

// ConnHandler runs a command that takes over its connection, for example to pass file descriptors.
// It writes its own answer to conn. ctx ends when the peer hangs up. Input after the command is
// lost, so the client must wait for an answer.
type ConnHandler func(ctx context.Context, conn *net.UnixConn, args json.RawMessage)

// RegisterConn adds a command that takes over its connection. query-commands does not list it. Only
// the user of this process and root may use it; members of the socket's group are refused.
func (s *Server) RegisterConn(name string, h ConnHandler) {
	s.register(name, command{takeConn: h, changes: true})
}

// runConnHandler ends the session's reader and writer, after queued output is sent, and passes the
// connection to h. After an error the session continues.
func (c *session) runConnHandler(h ConnHandler, args json.RawMessage) error {
	if err := OwnerOnly(c.ctx, "this command"); err != nil {
		return err
	}
	c.srv.setEvents(c, false)
	c.out.end()
	<-c.written
	c.conn.SetReadDeadline(time.Unix(1, 0))
	<-c.readEnded
	c.conn.SetDeadline(time.Time{})
	h(c.ctx, c.conn, args)
	c.abort()
	return nil
}

// SuspendCommands stops starting commands and accepting clients until resume is called; both wait.
// It returns when the running commands have ended. If ctx ends first, it resumes and returns ctx's
// error. Commands of RegisterConn are not suspended.
func (s *Server) SuspendCommands(ctx context.Context) (resume func(), err error) {
	s.mu.Lock()
	if s.suspended != nil {
		s.mu.Unlock()
		return nil, errorf("another takeover is in progress")
	}
	suspended := make(chan struct{})
	s.suspended = suspended
	s.setAcceptDeadlines(time.Unix(1, 0))
	s.mu.Unlock()
	resume = func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.setAcceptDeadlines(time.Time{})
		s.suspended = nil
		close(suspended)
	}
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		s.mu.Lock()
		n := s.running
		s.mu.Unlock()
		if n == 0 {
			return resume, nil
		}
		select {
		case <-ctx.Done():
			resume()
			return nil, fmt.Errorf("commands are still running: %w", ctx.Err())
		case <-tick.C:
		}
	}
}

// setAcceptDeadlines sets the deadline of all accept loops; zero: none. s.mu is held.
func (s *Server) setAcceptDeadlines(t time.Time) {
	for _, l := range s.listeners {
		l.SetDeadline(t)
	}
}

// suspension returns a channel that is closed when commands are resumed; nil: they are not
// suspended.
func (s *Server) suspension() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.suspended
}

// beginCommand waits until commands are not suspended and counts one as running. The caller must
// call endCommand.
func (s *Server) beginCommand(ctx context.Context) error {
	for {
		s.mu.Lock()
		suspended := s.suspended
		if suspended == nil {
			s.running++
			s.mu.Unlock()
			return nil
		}
		s.mu.Unlock()
		select {
		case <-suspended:
		case <-ctx.Done():
			return ErrClosed
		}
	}
}

func (s *Server) endCommand() {
	s.mu.Lock()
	s.running--
	s.mu.Unlock()
}

// Listeners returns the server's sockets.
func (s *Server) Listeners() []*Listener {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]*Listener(nil), s.listeners...)
}
