package link

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/digitalocean/go-qemu/qmp"
	"golang.org/x/sys/unix"
)

// MaxLine bounds one line from QEMU, in bytes. The longest, query-qmp-schema's reply, has a few
// hundred thousand.
const MaxLine = 4 << 20

// ErrDisconnected says that the connection was lost before the reply: the command may have been
// executed or not.
var ErrDisconnected = errors.New("the connection was lost")

// Error is the error of a command, as the server reports it.
type Error struct {
	Class string `json:"class"` // QEMU's QapiErrorClass
	Desc  string `json:"desc"`  // for a person
}

// Error returns Desc on one line: a peer cannot write a line of its own into a message.
func (e *Error) Error() string { return strings.ReplaceAll(e.Desc, "\n", "; ") }

// Link is one negotiated connection. Read must run for Run to get replies.
type Link struct {
	conn    net.Conn
	in      *bufio.Scanner
	version string

	mu      sync.Mutex
	next    uint64                  // last id given
	pending map[string]chan message // commands without a reply, by id; nil: closed
}

// message is any line from QEMU.
type message struct {
	QMP *struct {
		Version qmp.Version `json:"version"`
	} `json:"QMP"`
	Event  string          `json:"event"`
	Return json.RawMessage `json:"return"`
	Error  *Error          `json:"error"`
	ID     json.RawMessage `json:"id"`
}

// New negotiates on conn until ctx ends. It closes conn after an error. os.ErrDeadlineExceeded: no
// greeting came.
func New(ctx context.Context, conn net.Conn) (*Link, error) {
	l := &Link{conn: conn, in: bufio.NewScanner(conn), pending: make(map[string]chan message)}
	l.in.Buffer(nil, MaxLine)
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	err := l.handshake()
	if !stop() && err == nil {
		err = ctx.Err() // the deadline is set or about to be
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return l, nil
}

// Version returns the version in the server's greeting.
func (l *Link) Version() string { return l.version }

// Conn returns the connection, for questions about the peer.
func (l *Link) Conn() net.Conn { return l.conn }

// handshake reads the greeting and negotiates (qmp-spec, "Capabilities Negotiation").
func (l *Link) handshake() error {
	m, _, err := l.line()
	if err != nil {
		return err
	}
	if m.QMP == nil {
		return errors.New("expected QMP's greeting, found another message: is this a QMP monitor?")
	}
	l.version = m.QMP.Version.String()
	if _, err := l.conn.Write([]byte(`{"execute":"qmp_capabilities"}` + "\n")); err != nil {
		return err
	}
	for {
		m, _, err := l.line()
		if err != nil {
			return err
		}
		if m.Error != nil {
			return m.Error
		}
		if m.Return != nil {
			return nil
		}
	}
}

// line reads one message; raw is valid until the next call.
func (l *Link) line() (m message, raw []byte, err error) {
	for l.in.Scan() {
		raw = bytes.TrimSpace(l.in.Bytes())
		if len(raw) == 0 {
			continue
		}
		if err := json.Unmarshal(raw, &m); err != nil {
			return m, nil, fmt.Errorf("expected a QMP message: %w", err)
		}
		return m, raw, nil
	}
	if err := l.in.Err(); err != nil {
		return m, nil, err
	}
	return m, nil, fmt.Errorf("the other side closed the connection: %w", io.EOF)
}

// Read delivers replies and events until the connection breaks.
func (l *Link) Read(deliver func(qmp.Event)) error {
	for {
		m, raw, err := l.line()
		if err != nil {
			return err
		}
		if m.Event != "" {
			var e qmp.Event
			if err := json.Unmarshal(raw, &e); err != nil {
				return fmt.Errorf("event %s: %w", m.Event, err)
			}
			deliver(e)
			continue
		}
		l.mu.Lock()
		id := string(m.ID)
		if id == "" && len(l.pending) == 1 {
			for id = range l.pending { // a server that does not repeat ids
			}
		}
		reply := l.pending[id]
		delete(l.pending, id)
		l.mu.Unlock()
		if reply != nil {
			reply <- m // buffered
		}
	}
}

// Run executes one command. Errors: *Error from the server; ErrDisconnected; ctx's. Replies are
// matched by id, so that a late reply is not taken for that of another command.
func (l *Link) Run(ctx context.Context, command string, args any) (json.RawMessage, error) {
	l.mu.Lock()
	if l.pending == nil {
		l.mu.Unlock()
		return nil, ErrDisconnected
	}
	l.next++
	id := strconv.FormatUint(l.next, 10)
	reply := make(chan message, 1)
	l.pending[id] = reply
	text, err := json.Marshal(struct {
		qmp.Command
		ID uint64 `json:"id"`
	}{qmp.Command{Execute: command, Args: args}, l.next})
	if err == nil {
		// Under the lock, because commands must not be interleaved. If QEMU does not read, other
		// commands wait until this one's deadline.
		deadline, _ := ctx.Deadline()
		l.conn.SetWriteDeadline(deadline)
		var n int
		if n, err = l.conn.Write(append(text, '\n')); err != nil && n > 0 {
			l.conn.Close() // after a partial command the stream cannot be used
		}
	}
	l.mu.Unlock()
	defer func() {
		l.mu.Lock()
		delete(l.pending, id)
		l.mu.Unlock()
	}()
	switch {
	case errors.Is(err, net.ErrClosed), errors.Is(err, unix.EPIPE), errors.Is(err, unix.ECONNRESET):
		return nil, ErrDisconnected
	case err != nil:
		return nil, err
	}
	select {
	case m, ok := <-reply:
		switch {
		case !ok:
			return nil, ErrDisconnected
		case m.Error != nil:
			return nil, m.Error
		}
		return m.Return, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Close ends the connection and all pending commands.
func (l *Link) Close() {
	l.conn.Close()
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, reply := range l.pending {
		close(reply)
	}
	l.pending = nil
}
