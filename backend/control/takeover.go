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

// handOver ends the session's reader and writer, once what is queued has been sent, and
// leaves the connection to h. After an error the session goes on.
func (c *session) handOver(h ConnHandler, args json.RawMessage) error {
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

// Hold lets no command begin, accepts no client, and returns when the commands under
// way have ended, or with ctx's error, and then nothing is held. What comes waits for
// release. Commands of RegisterConn are not held.
func (s *Server) Hold(ctx context.Context) (release func(), err error) {
	s.mu.Lock()
	if s.held != nil {
		s.mu.Unlock()
		return nil, errorf("another such command is under way")
	}
	held := make(chan struct{})
	s.held = held
	s.deadlines(time.Unix(1, 0))
	s.mu.Unlock()
	release = func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.deadlines(time.Time{})
		s.held = nil
		close(held)
	}
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		s.mu.Lock()
		n := s.running
		s.mu.Unlock()
		if n == 0 {
			return release, nil
		}
		select {
		case <-ctx.Done():
			release()
			return nil, fmt.Errorf("commands are under way: %w", ctx.Err())
		case <-tick.C:
		}
	}
}

// deadlines ends accepts under way, or lets them be; mu is held.
func (s *Server) deadlines(t time.Time) {
	for _, l := range s.listeners {
		l.SetDeadline(t)
	}
}

// holding is closed when no Hold is in force.
func (s *Server) holding() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.held != nil {
		return s.held
	}
	none := make(chan struct{})
	close(none)
	return none
}

// enter waits while commands are held, and counts one; leave must follow.
func (s *Server) enter(ctx context.Context) error {
	for {
		s.mu.Lock()
		held := s.held
		if held == nil {
			s.running++
			s.mu.Unlock()
			return nil
		}
		s.mu.Unlock()
		select {
		case <-held:
		case <-ctx.Done():
			return ErrClosed
		}
	}
}

func (s *Server) leave() {
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
