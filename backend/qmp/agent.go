package qmp

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"time"

	"cowblk/backend/control"
)

// ErrAlreadyFrozen says that another program has frozen the guest, and must thaw it.
var ErrAlreadyFrozen = errors.New("the guest is frozen already")

// AgentOptions configures an Agent.
type AgentOptions struct {
	Log     *slog.Logger // nil: nothing is logged
	Address Address      // host side of the agent's virtio-serial port, or its vsock address
	// Instance is the recorded run of a guest that is to be thawed; empty: unknown.
	Instance string
}

// Agent freezes a guest's file systems through qemu-ga. It connects in Identify or Freeze and keeps
// the connection until Thaw returns, because a port serves one client at a time.
type Agent struct {
	opts   AgentOptions
	conn   *agentConn // nil: none
	frozen bool       // freeze was sent and may have been executed
	// replaced: the process at the address is not that of Instance.
	replaced bool
}

// NewAgent returns an Agent that is not connected.
func NewAgent(o AgentOptions) *Agent {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Agent{opts: o}
}

// Identify connects, and keeps the connection for Freeze.
func (a *Agent) Identify(ctx context.Context) (instance string, err error) {
	if a.conn == nil {
		if a.conn, err = a.dial(ctx); err != nil {
			return "", a.wrapError(err)
		}
	}
	return peerInstance(a.conn.Conn), nil
}

// Freeze freezes all file systems of the guest. It returns ErrAlreadyFrozen if they are frozen.
func (a *Agent) Freeze(ctx context.Context) error {
	err := a.freeze(ctx)
	if err != nil && !a.frozen {
		a.disconnect()
	}
	return a.wrapError(err)
}

func (a *Agent) freeze(ctx context.Context) error {
	status, err := a.status(ctx)
	if err != nil {
		return err
	}
	if status != "thawed" {
		return fmt.Errorf("%w: its status is %q", ErrAlreadyFrozen, status)
	}
	a.frozen = true
	var count int
	if err := a.call(ctx, "guest-fsfreeze-freeze", &count); err != nil {
		var remote *control.Error
		if errors.As(err, &remote) && remote.Class == control.CommandNotFound {
			a.frozen = false // the agent has no such command or forbids it: nothing was done
		}
		return err
	}
	if count == 0 {
		a.opts.Log.Warn("the guest agent found no file system to freeze",
			"address", a.opts.Address.String())
	}
	return nil
}

// Thaw thaws the file systems that Freeze has frozen, or may have frozen.
func (a *Agent) Thaw(ctx context.Context) error {
	if !a.frozen {
		return nil
	}
	return a.ForceThaw(ctx)
}

// ForceThaw thaws the guest even if another process froze it.
func (a *Agent) ForceThaw(ctx context.Context) error {
	if err := goneIfEnded(a.opts.Instance); err != nil {
		return err
	}
	const advice = "run guest-fsfreeze-thaw, or virsh domfsthaw"
	err := retry(ctx, "guest-fsfreeze-thaw", advice, func(ctx context.Context) error {
		// The agent runs one command at a time: a freeze without a reply has ended before the sync
		// of a new connection is answered. Thawing a guest that is not frozen is not an error.
		err := a.call(ctx, "guest-fsfreeze-thaw", nil)
		if err == nil {
			var status string
			if status, err = a.status(ctx); err == nil && status != "thawed" {
				err = fmt.Errorf("expected status %q after thawing, found %q", "thawed", status)
			}
		}
		if err != nil && a.replaced {
			// The agent of another run, which is not frozen, need not answer yet.
			return fmt.Errorf("%w: another process listens there now", ErrGone)
		}
		return goneIfRefused(a.opts.Instance, err)
	})
	a.disconnect()
	if err == nil {
		a.frozen = false
	}
	return a.wrapError(err)
}

func (a *Agent) wrapError(err error) error {
	if err != nil {
		err = fmt.Errorf("guest agent %s: %w", a.opts.Address, err)
	}
	return err
}

func (a *Agent) status(ctx context.Context) (status string, err error) {
	err = a.call(ctx, "guest-fsfreeze-status", &status)
	return status, err
}

// call runs one command and connects first if necessary. After an error other than the agent's it
// closes the connection, because a late reply would be taken for that of the next command.
func (a *Agent) call(ctx context.Context, command string, out any) error {
	if a.conn == nil {
		conn, err := a.dial(ctx)
		if err != nil {
			return err
		}
		a.conn = conn
	}
	err := a.conn.call(ctx, command, out)
	var remote *control.Error
	if err != nil && !errors.As(err, &remote) {
		a.disconnect()
	}
	if err != nil {
		return fmt.Errorf("%s: %w", command, err)
	}
	return nil
}

// dial connects and sets replaced.
func (a *Agent) dial(ctx context.Context) (*agentConn, error) {
	conn, err := a.opts.Address.dial(ctx)
	if err != nil {
		return nil, err
	}
	now := peerInstance(conn)
	a.replaced = a.opts.Instance != "" && now != "" && now != a.opts.Instance
	return newAgentConn(ctx, conn)
}

func (a *Agent) disconnect() {
	if a.conn != nil {
		a.conn.Close()
		a.conn = nil
	}
}

// agentConn is a synchronized connection to a guest agent. The protocol is QMP without greeting,
// negotiation, events and ids (qga/qapi-schema.json).
type agentConn struct {
	net.Conn
	in *bufio.Reader
}

// maxAgentLine bounds a reply, in bytes. The expected ones have a few dozen.
const maxAgentLine = 64 << 10

// maxStale bounds the stale input before the reply to our sync, in bytes.
const maxStale = 16 << 20

// newAgentConn synchronizes a connection until ctx ends. After an error it is closed.
func newAgentConn(ctx context.Context, conn net.Conn) (*agentConn, error) {
	c := &agentConn{conn, bufio.NewReaderSize(conn, maxAgentLine)}
	if err := c.withContext(ctx, c.sync); err != nil {
		conn.Close()
		if errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded) {
			err = fmt.Errorf("%w: is qemu-guest-agent running in the guest?", err)
		}
		return nil, fmt.Errorf("guest-sync-delimited: %w", err)
	}
	return c, nil
}

// withContext runs f, whose reads and writes fail when ctx ends.
func (c *agentConn) withContext(ctx context.Context, f func() error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	c.SetDeadline(time.Time{})
	stop := context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })
	err := f()
	if !stop() && err != nil {
		err = ctx.Err()
	}
	return err
}

// sync drops what an earlier client left in the channel. The byte 0xFF resets the agent's parser,
// and the agent's 0xFF directly precedes the reply with our id.
func (c *agentConn) sync() error {
	id := rand.Int64()
	const command = "\xff" + `{"execute":"guest-sync-delimited","arguments":{"id":%d}}` + "\n"
	if _, err := fmt.Fprintf(c, command, id); err != nil {
		return err
	}
	for stale := 0; stale < maxStale; {
		// The sentinel may belong to the sync of an earlier client.
		dropped, err := c.in.ReadSlice(0xff)
		stale += len(dropped)
		if errors.Is(err, bufio.ErrBufferFull) {
			continue
		}
		if err != nil {
			return channelError(err)
		}
		// Peek only: in garbage the next sentinel may precede the next newline.
		line, err := c.peekLine()
		if err != nil {
			return channelError(err)
		}
		var reply struct {
			Return int64 `json:"return"`
		}
		if json.Unmarshal(line, &reply) == nil && reply.Return == id {
			_, err = c.in.Discard(len(line))
			return err
		}
	}
	return fmt.Errorf("no reply within %d bytes: is this a guest agent?", maxStale)
}

// peekLine returns the input up to a newline, without consuming it; nil if a sentinel comes first
// or the line is too long.
func (c *agentConn) peekLine() ([]byte, error) {
	for n := 1; ; {
		b, err := c.in.Peek(n)
		if i := bytes.IndexByte(b, '\n'); i >= 0 {
			return b[:i+1], nil
		}
		if bytes.IndexByte(b, 0xff) >= 0 || len(b) == maxAgentLine {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		// Use input that has arrived without waiting for more.
		n = max(len(b)+1, min(c.in.Buffered(), maxAgentLine))
	}
}

// call runs one command.
func (c *agentConn) call(ctx context.Context, command string, out any) error {
	text, err := json.Marshal(map[string]string{"execute": command})
	if err != nil {
		return err
	}
	return c.withContext(ctx, func() error {
		if _, err := c.Write(append(text, '\n')); err != nil {
			return channelError(err)
		}
		var line []byte
		for len(line) == 0 {
			raw, err := c.in.ReadSlice('\n')
			if err != nil {
				return channelError(err)
			}
			line = bytes.TrimSpace(raw)
		}
		return decodeReply(line, out)
	})
}

// channelError explains the end of the stream.
func channelError(err error) error {
	if errors.Is(err, io.EOF) {
		return errors.New("the guest agent's channel was closed")
	}
	return err
}
