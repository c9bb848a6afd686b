package control

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"
)

// Handler runs one command. args is a JSON object (see [Decode]). The result must be encodable as
// JSON; nil stands for the empty object.
//
// The commands of a client run one at a time; those of different clients run concurrently. ctx ends
// when the client disconnects or the server closes. Half-closing, as socat does at the end of its
// input, is not disconnecting. The handler must then return soon, because Close waits for it. A
// handler must not call [Server.Close]; the handler of quit signals the main goroutine, and its
// reply is sent before the socket closes.
type Handler func(ctx context.Context, args json.RawMessage) (any, error)

// ConnHandler runs a command that takes over its connection, for example to pass file descriptors.
// It writes its own answer to conn. ctx ends when the peer hangs up. Input after the command is
// lost, so the client must wait for an answer.
type ConnHandler func(ctx context.Context, conn *net.UnixConn, args json.RawMessage)

// command is one command; run or takeConn is set.
type command struct {
	run      Handler
	takeConn ConnHandler
	changes  bool // it changes state: it is logged
	own      bool // of the server itself: all clients may give it
}

// Register adds a command that changes nothing. It replaces a command of the same name. Members of
// the group may give it only if Options.GroupMay has it, as with RegisterChange.
func (s *Server) Register(name string, h Handler) { s.register(name, command{run: h}) }

// RegisterChange adds a command that changes state; sender and arguments are logged. It replaces a
// command of the same name.
func (s *Server) RegisterChange(name string, h Handler) {
	s.register(name, command{run: h, changes: true})
}

func (s *Server) register(name string, c command) {
	s.mu.Lock()
	s.commands[name] = c
	s.mu.Unlock()
}

// RegisterConn adds a command that takes over its connection. query-commands does not list it. Only
// the user of this process and root may use it; members of the socket's group are refused.
func (s *Server) RegisterConn(name string, h ConnHandler) {
	s.register(name, command{takeConn: h, changes: true})
}

// lookup returns a command by name.
func (s *Server) lookup(name string) (command, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c, ok := s.commands[name]
	return c, ok
}

// queryCommands lists the commands, except those that take over a connection.
func (s *Server) queryCommands(context.Context, struct{}) (any, error) {
	type info struct {
		Name string `json:"name"`
	}
	list := []info{{cmdCapabilities}, {cmdSetEvents}, {cmdLastError}}
	s.mu.Lock()
	for name, c := range s.commands {
		if c.takeConn == nil {
			list = append(list, info{name})
		}
	}
	s.mu.Unlock()
	slices.SortFunc(list, func(a, b info) int { return strings.Compare(a.Name, b.Name) })
	return list, nil
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
