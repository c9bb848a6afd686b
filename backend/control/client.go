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

// ErrNoDaemon says that no process listens on the socket.
var ErrNoDaemon = errors.New("no daemon serves it")

// Client sends commands to a Server through go-qemu's SocketMonitor; Run works with other QMP
// servers, too. A Client holds no connection. All methods may be called from any goroutine.
//
// Workarounds for SocketMonitor:
//
//   - It returns a reply that lies in its receive buffer and reads on into that buffer. So each
//     command has its own connection with events turned off, and events have another.
//   - It returns the description of an error without the class. The client queries the class with
//     cow-last-error.
//   - It stops reading while an event waits for a receiver, and Disconnect then hangs. Events
//     drains the channel.
//   - Connect and Run have no deadline. They run in a goroutine, and Disconnect makes them return.
//   - A lost connection appears as a JSON error: see [ErrClosed].
type Client struct {
	path    string
	timeout time.Duration
	version string
}

// Dial connects to the socket at path once, to verify that a QMP server answers. timeout bounds
// each step of connecting, also in later calls; 0: 5 s. ErrNoDaemon: the socket does not exist, or
// no process listens on it.
func Dial(path string, timeout time.Duration) (*Client, error) {
	if timeout == 0 {
		timeout = 5 * time.Second
	}
	c := &Client{path: path, timeout: timeout}
	ctx, cancel := context.WithTimeout(context.Background(), 2*timeout)
	defer cancel()
	mon, err := c.connect(ctx)
	if err != nil {
		return nil, err
	}
	c.version = mon.Version.String()
	mon.Disconnect()
	return c, nil
}

// Version returns the version in the daemon's greeting to Dial: "MAJOR.MINOR.MICRO".
func (c *Client) Version() string { return c.version }

// Run executes a command. args is marshalled to a JSON object, nil for none; the reply is
// unmarshalled into out unless out is nil. Errors: *Error from the daemon; ErrNoDaemon; ErrClosed
// if the connection is lost; ctx's error when ctx ends, which also ends the command's context.
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
	eventsOff, err := json.Marshal(qmp.Command{Execute: cmdSetEvents, Args: map[string]bool{"enable": false}})
	if err != nil {
		return err
	}
	// Other QMP servers do not know the command, which is harmless.
	if _, err := roundTrip(ctx, mon, eventsOff); err != nil && !isDaemonError(err) {
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

// Events returns the daemon's events from now on. The channel closes when ctx ends or the
// connection is lost. The daemon disconnects a client that does not receive.
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
		// Disconnect waits for a reader that may be blocked on an event.
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

// connect dials and negotiates.
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
		mon.Disconnect() // again: Connect may have succeeded meanwhile
		return nil, fmt.Errorf("control socket %s: no greeting: %w", c.path, err)
	}
	return mon, nil
}

// roundTrip runs one command and translates SocketMonitor's errors. When ctx ends, the monitor is
// disconnected.
func roundTrip(ctx context.Context, mon *qmp.SocketMonitor, text []byte) ([]byte, error) {
	reply, cause := runContext(ctx, mon, text)
	if cause == nil || ctx.Err() != nil {
		return reply, cause
	}
	query, err := json.Marshal(qmp.Command{Execute: cmdLastError})
	if err != nil {
		return nil, cause
	}
	reply, err = runContext(ctx, mon, query)
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
		return nil, cause // SocketMonitor's own error about a reply
	}
	var errno unix.Errno
	var syntax *json.SyntaxError
	if errors.As(err, &errno) || errors.As(err, &syntax) || errors.Is(err, net.ErrClosed) {
		return nil, fmt.Errorf("%w: the daemon ended or closed the connection", ErrClosed)
	}
	// Not our server: it does not know cow-last-error.
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

func isDaemonError(err error) bool {
	var e *Error
	return errors.As(err, &e)
}

// forward passes events on until in is closed or ctx ends.
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
