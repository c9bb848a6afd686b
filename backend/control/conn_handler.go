package control

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"time"
)

// ConnHandler runs a command that takes its connection over, to pass file descriptors
// for instance: it answers on conn itself, or closes it. ctx ends when the peer hangs
// up. What the client has sent after the command is lost: it must wait for an answer.
type ConnHandler func(ctx context.Context, conn *net.UnixConn, args json.RawMessage)

// RegisterConn adds a command that takes its connection over. It is not among those
// that query-commands lists, and only for the user that this process runs as, and root:
// members of the socket's group are refused.
func (s *Server) RegisterConn(name string, h ConnHandler) {
	s.mu.Lock()
	s.conns[name] = h
	s.mu.Unlock()
}

func (s *Server) lookupConn(name string) ConnHandler {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.conns[name]
}

// runConnHandler ends the session's reader and writer, once what is queued has been sent, and
// leaves the connection to h. After an error the session goes on.
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

// SuspendCommands lets no command begin, accepts no client, and returns when the commands under
// way have ended, or with ctx's error, and then nothing is held. What comes waits for
// release. Commands of RegisterConn are not held.
func (s *Server) SuspendCommands(ctx context.Context) (resume func(), err error) {
	s.mu.Lock()
	if s.suspended != nil {
		s.mu.Unlock()
		return nil, errorf("another such command is under way")
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
			return nil, fmt.Errorf("commands are under way: %w", ctx.Err())
		case <-tick.C:
		}
	}
}

// setAcceptDeadlines ends accepts under way, or lets them be; mu is held.
func (s *Server) setAcceptDeadlines(t time.Time) {
	for _, l := range s.listeners {
		l.SetDeadline(t)
	}
}

// waitResumed is closed when no Hold is in force.
func (s *Server) waitResumed() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.suspended != nil {
		return s.suspended
	}
	none := make(chan struct{})
	close(none)
	return none
}

// beginCommand waits while commands are held, and counts one; leave must follow.
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

// Listeners are the server's sockets.
func (s *Server) Listeners() []*Listener {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]*Listener(nil), s.listeners...)
}
