package qmp

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/digitalocean/go-qemu/qmp"
	"golang.org/x/sys/unix"

	"cowblk/backend/control"
)

// maxLine bounds one line from QEMU, in bytes. The longest, query-qmp-schema's reply, has a few
// hundred thousand.
const maxLine = 4 << 20

// link is one negotiated connection to a QMP monitor.
type link struct {
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
	Error  *control.Error  `json:"error"`
	ID     json.RawMessage `json:"id"`
}

// dialLink connects and negotiates until ctx ends.
func dialLink(ctx context.Context, a Address) (*link, error) {
	conn, err := a.dial(ctx)
	if err != nil {
		return nil, err
	}
	l := &link{conn: conn, in: bufio.NewScanner(conn), pending: make(map[string]chan message)}
	l.in.Buffer(nil, maxLine)
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	err = l.handshake()
	if !stop() && err == nil {
		err = ctx.Err() // the deadline is set or about to be
	}
	if err != nil {
		conn.Close()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			err = fmt.Errorf("%w: no greeting: is another client connected to this monitor?", err)
		}
		return nil, fmt.Errorf("%s: %w", a, err)
	}
	return l, nil
}

// handshake reads the greeting and negotiates (qmp-spec, "Capabilities Negotiation").
func (l *link) handshake() error {
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
func (l *link) line() (m message, raw []byte, err error) {
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
	return m, nil, errors.New("QEMU closed the connection")
}

// read delivers replies and events until the connection breaks.
func (l *link) read(deliver func(qmp.Event)) error {
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
		reply := l.pending[string(m.ID)]
		delete(l.pending, string(m.ID))
		l.mu.Unlock()
		if reply != nil {
			reply <- m // buffered
		}
	}
}

// run executes one command. Replies are matched by id, so that a late reply is not taken for that
// of another command.
func (l *link) run(ctx context.Context, command string, args any) (json.RawMessage, error) {
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

// close ends the connection and all pending commands.
func (l *link) close() {
	l.conn.Close()
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, reply := range l.pending {
		close(reply)
	}
	l.pending = nil
}
