package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"sync/atomic"
	"time"

	"github.com/digitalocean/go-qemu/qmp"
	"golang.org/x/sys/unix"
)

// ErrNoDaemon says that nobody listens on the socket.
var ErrNoDaemon = errors.New("no daemon serves it")

// Client is a connection to a Server, or another QMP server in as far as Run is
// concerned, over go-qemu's SocketMonitor. For one user at a time; Close may come from
// another goroutine.
//
// What SocketMonitor needs from its surroundings, and where it gets it:
//
//   - It hands out a reply that lies in its receive buffer and reads on into it, so that
//     an event behind the reply may overwrite it: the connection for commands has its
//     events turned off, and that for events runs no commands.
//   - It keeps an error's description and drops its class: cow-last-error asks for it.
//   - It stops reading while an event waits for a listener, and Disconnect then hangs:
//     Events has a goroutine that takes them until the channel closes.
//   - Connect and Run know no deadline: both run in a goroutine here, and Disconnect
//     makes them return.
//   - A peer that is gone shows as a JSON error: see [ErrClosed].
type Client struct {
	path    string
	timeout time.Duration
	mon     *qmp.SocketMonitor
	broken  atomic.Bool // closed, by a Run that was given up or by the daemon
}

// Dial connects to the socket at path and negotiates; timeout is for each step of
// connecting, 0 for 5 s. ErrNoDaemon: there is no socket, or nobody listens on it.
func Dial(path string, timeout time.Duration) (*Client, error) {
	if timeout == 0 {
		timeout = 5 * time.Second
	}
	mon, err := connect(path, timeout)
	if err != nil {
		return nil, err
	}
	c := &Client{path: path, timeout: timeout, mon: mon}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	var remote *Error
	err = c.Run(ctx, cmdSetEvents, map[string]bool{"enable": false}, nil)
	if err != nil && !errors.As(err, &remote) {
		c.Close()
		return nil, err
	}
	return c, nil
}

// connect dials and shakes hands, each within timeout.
func connect(path string, timeout time.Duration) (*qmp.SocketMonitor, error) {
	mon, err := qmp.NewSocketMonitor("unix", path, timeout)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ECONNREFUSED):
		return nil, fmt.Errorf("control socket %s: %w", path, ErrNoDaemon)
	case err != nil:
		return nil, fmt.Errorf("control socket %s: %w", path, err)
	}
	result := make(chan error, 1)
	go func() { result <- mon.Connect() }()
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	select {
	case err = <-result:
	case <-timer.C:
		mon.Disconnect()
		<-result
		err = os.ErrDeadlineExceeded
	}
	if err != nil {
		mon.Disconnect() // for good, should Connect have got through at the last moment
		return nil, fmt.Errorf("control socket %s: no greeting: %w", path, err)
	}
	return mon, nil
}

// Version is the daemon's, from its greeting: "MAJOR.MINOR.MICRO".
func (c *Client) Version() string { return c.mon.Version.String() }

// Run executes a command. args is marshalled to a JSON object, nil for none; the reply
// is unmarshalled into out unless that is nil. A failure that the daemon reported is an
// *Error; ErrClosed: the daemon went away, or an earlier Run was given up; else ctx's
// error: the connection is closed then, which cancels the command.
func (c *Client) Run(ctx context.Context, command string, args, out any) error {
	if c.broken.Load() {
		return fmt.Errorf("%s on %s: %w", command, c.path, ErrClosed)
	}
	text, err := json.Marshal(qmp.Command{Execute: command, Args: args})
	if err != nil {
		return fmt.Errorf("%s on %s: arguments: %w", command, c.path, err)
	}
	reply, err := c.roundTrip(ctx, text)
	if err != nil {
		return fmt.Errorf("%s on %s: %w", command, c.path, c.explain(ctx, err))
	}
	if out == nil {
		return nil
	}
	r := struct {
		Return any `json:"return"`
	}{out}
	if err := json.Unmarshal(reply, &r); err != nil {
		return fmt.Errorf("%s on %s: reply: %w", command, c.path, err)
	}
	return nil
}

// roundTrip is SocketMonitor.Run with a context.
func (c *Client) roundTrip(ctx context.Context, text []byte) ([]byte, error) {
	type result struct {
		reply []byte
		err   error
	}
	done := make(chan result, 1)
	go func() {
		reply, err := c.mon.Run(text)
		done <- result{reply, err}
	}()
	select {
	case r := <-done:
		return r.reply, r.err
	case <-ctx.Done():
		c.broken.Store(true)
		c.mon.Disconnect()
		<-done
		return nil, ctx.Err()
	}
}

// explain turns SocketMonitor's error into what it stands for.
func (c *Client) explain(ctx context.Context, cause error) error {
	if c.broken.Load() {
		return cause
	}
	text, err := json.Marshal(qmp.Command{Execute: cmdLastError})
	if err != nil {
		return cause
	}
	reply, err := c.roundTrip(ctx, text)
	if c.broken.Load() {
		return err
	}
	var r struct {
		Return *Error `json:"return"`
	}
	if err == nil && json.Unmarshal(reply, &r) == nil {
		if r.Return != nil && r.Return.Desc == cause.Error() {
			return r.Return
		}
		return cause // SocketMonitor's own complaint about a reply
	}
	var lost unix.Errno
	var syntax *json.SyntaxError
	if errors.As(err, &lost) || errors.As(err, &syntax) || errors.Is(err, net.ErrClosed) {
		c.broken.Store(true)
		c.mon.Disconnect()
		return fmt.Errorf("%w: the daemon ended or closed the connection", ErrClosed)
	}
	// A QMP server that does not know cow-last-error.
	return &Error{Class: GenericError, Desc: cause.Error()}
}

// Events makes a second connection and returns the daemon's events from now on. The
// channel closes when ctx ends or the daemon goes away; who does not receive for long
// is closed by the daemon, nothing else stops.
func (c *Client) Events(ctx context.Context) (<-chan qmp.Event, error) {
	mon, err := connect(c.path, c.timeout)
	if err != nil {
		return nil, err
	}
	in, err := mon.Events(ctx)
	if err != nil {
		mon.Disconnect()
		return nil, fmt.Errorf("control socket %s: events: %w", c.path, err)
	}
	out := make(chan qmp.Event)
	go func() {
		defer close(out)
		forward(ctx, in, out)
		// Disconnect waits for a reader that may be waiting to hand over an event.
		drained := make(chan struct{})
		go func() {
			defer close(drained)
			for range in {
			}
		}()
		mon.Disconnect()
		<-drained
	}()
	return out, nil
}

// forward passes events on until either end is done.
func forward(ctx context.Context, in <-chan qmp.Event, out chan<- qmp.Event) {
	for {
		select {
		case e, ok := <-in:
			if !ok {
				return
			}
			select {
			case out <- e:
			case <-ctx.Done():
				return
			}
		case <-ctx.Done():
			return
		}
	}
}

// Close ends the connection; events have their own and end with their context.
func (c *Client) Close() error {
	if err := c.mon.Disconnect(); err != nil && !c.broken.Load() {
		return fmt.Errorf("control socket %s: %w", c.path, err)
	}
	return nil
}
