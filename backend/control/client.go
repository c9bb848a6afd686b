package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"time"

	"github.com/digitalocean/go-qemu/qmp"
	"golang.org/x/sys/unix"
)

// ErrNoDaemon says that nobody listens on the socket.
var ErrNoDaemon = errors.New("no daemon serves it")

// Client reaches a Server, or another QMP server in as far as Run is concerned, over
// go-qemu's SocketMonitor. It holds no connection, and all its methods may be called
// from any goroutine.
//
// What SocketMonitor needs from its surroundings, and where it gets it:
//
//   - It hands out a reply that lies in its receive buffer while it reads on into that
//     buffer, so that whatever comes later may overwrite the reply: each command has a
//     connection of its own with events turned off, and events have theirs.
//   - It keeps an error's description and drops its class: cow-last-error asks for it.
//   - It stops reading while an event waits for a listener, and Disconnect then hangs:
//     Events takes what is left.
//   - Connect and Run know no deadline: both run in a goroutine here, and Disconnect
//     makes them return.
//   - A peer that is gone shows as a JSON error: see [ErrClosed].
type Client struct {
	path    string
	timeout time.Duration
	version string
}

// Dial connects to the socket at path once, to see who is there; timeout is for each
// step of connecting, then and later, 0 for 5 s. ErrNoDaemon: there is no socket, or
// nobody listens on it.
func Dial(path string, timeout time.Duration) (*Client, error) {
	return DialContext(context.Background(), path, timeout)
}

// DialContext is Dial that ends when ctx does, with its error.
func DialContext(ctx context.Context, path string, timeout time.Duration) (*Client, error) {
	if timeout == 0 {
		timeout = 5 * time.Second
	}
	c := &Client{path: path, timeout: timeout}
	ctx, cancel := context.WithTimeout(ctx, 2*timeout)
	defer cancel()
	mon, err := c.connect(ctx)
	if err != nil {
		return nil, err
	}
	c.version = mon.Version.String()
	mon.Disconnect()
	return c, nil
}

// Version is the daemon's, from its greeting to Dial: "MAJOR.MINOR.MICRO".
func (c *Client) Version() string { return c.version }

// Run executes a command. args is marshalled to a JSON object, nil for none; the reply
// is unmarshalled into out unless that is nil. A failure that the daemon reported is an
// *Error. ErrNoDaemon and ErrClosed: it is not there, or went away in the middle. When
// ctx ends, its error, and the command's context ends too.
func (c *Client) Run(ctx context.Context, command string, args, out any) error {
	text, err := json.Marshal(qmp.Command{Execute: command, Args: args})
	if err != nil {
		return fmt.Errorf("%s: arguments: %w", command, err)
	}
	mon, err := c.connect(ctx)
	if err != nil {
		return err
	}
	defer mon.Disconnect()
	mute, err := json.Marshal(qmp.Command{Execute: cmdSetEvents, Args: map[string]bool{"enable": false}})
	if err != nil {
		return err
	}
	// A server that is not ours does not know the command: no matter.
	if _, err := roundTrip(ctx, mon, mute); err != nil && !isRemote(err) {
		return fmt.Errorf("control socket %s: %w", c.path, err)
	}
	reply, err := roundTrip(ctx, mon, text)
	if err != nil {
		return fmt.Errorf("control socket %s: %s: %w", c.path, command, err)
	}
	if out == nil {
		return nil
	}
	r := struct {
		Return any `json:"return"`
	}{out}
	if err := json.Unmarshal(reply, &r); err != nil {
		return fmt.Errorf("control socket %s: %s: reply: %w", c.path, command, err)
	}
	return nil
}

// Events returns the daemon's events from now on. The channel closes when ctx ends or
// the daemon goes away; who does not receive for long is closed by the daemon, and
// nothing else suffers.
func (c *Client) Events(ctx context.Context) (<-chan qmp.Event, error) {
	mon, err := c.connect(ctx)
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

// connect dials and shakes hands.
func (c *Client) connect(ctx context.Context) (*qmp.SocketMonitor, error) {
	mon, err := qmp.NewSocketMonitor("unix", c.path, c.timeout)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ECONNREFUSED):
		return nil, fmt.Errorf("control socket %s: %w", c.path, ErrNoDaemon)
	case err != nil:
		return nil, fmt.Errorf("control socket %s: %w", c.path, err)
	}
	result := make(chan error, 1)
	go func() { result <- mon.Connect() }()
	timer := time.NewTimer(c.timeout)
	defer timer.Stop()
	select {
	case err = <-result:
	case <-timer.C:
		mon.Disconnect()
		<-result
		err = os.ErrDeadlineExceeded
	case <-ctx.Done():
		mon.Disconnect()
		<-result
		err = ctx.Err()
	}
	if err != nil {
		mon.Disconnect() // again: Connect may have got through at the last moment
		return nil, fmt.Errorf("control socket %s: no greeting: %w", c.path, err)
	}
	return mon, nil
}

// roundTrip runs one command and turns SocketMonitor's errors into what they stand for.
// After ctx's end the monitor is disconnected.
func roundTrip(ctx context.Context, mon *qmp.SocketMonitor, text []byte) ([]byte, error) {
	reply, cause := runContext(ctx, mon, text)
	if cause == nil || ctx.Err() != nil {
		return reply, cause
	}
	ask, err := json.Marshal(qmp.Command{Execute: cmdLastError})
	if err != nil {
		return nil, cause
	}
	reply, err = runContext(ctx, mon, ask)
	if ctx.Err() != nil {
		return nil, err
	}
	var r struct {
		Return *Error `json:"return"`
	}
	if err == nil && json.Unmarshal(reply, &r) == nil {
		if r.Return != nil && r.Return.Desc == cause.Error() {
			return nil, r.Return
		}
		return nil, cause // SocketMonitor's own complaint about a reply
	}
	var errno unix.Errno
	var syntax *json.SyntaxError
	if errors.As(err, &errno) || errors.As(err, &syntax) || errors.Is(err, net.ErrClosed) {
		return nil, fmt.Errorf("%w: the daemon ended or closed the connection", ErrClosed)
	}
	// A QMP server that does not know cow-last-error.
	return nil, &Error{Class: GenericError, Desc: cause.Error()}
}

// runContext is SocketMonitor.Run with a context.
func runContext(ctx context.Context, mon *qmp.SocketMonitor, text []byte) (reply []byte, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		reply, err = mon.Run(text)
	}()
	select {
	case <-done:
		return reply, err
	case <-ctx.Done():
		mon.Disconnect()
		<-done
		return nil, ctx.Err()
	}
}

func isRemote(err error) bool {
	var e *Error
	return errors.As(err, &e)
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
