package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"time"

	"github.com/digitalocean/go-qemu/qmp"
	"golang.org/x/sys/unix"

	"cowblk/backend/qmp/link"
)

// ErrNoDaemon says that no process listens on the socket.
var ErrNoDaemon = errors.New("no daemon serves it")

// Client sends commands to a Server; Run works with other QMP servers, too. A Client holds no
// connection: each command has its own, and so has Events. All methods may be called from any
// goroutine.
type Client struct {
	path    string
	timeout time.Duration
	version string
}

// Dial connects to the socket at path once, to verify that a QMP server answers. timeout bounds
// each step of connecting, also in later calls; 0: 5 s. ErrNoDaemon: the socket does not exist, or
// no process listens on it.
func Dial(path string, timeout time.Duration) (*Client, error) {
	return DialContext(context.Background(), path, timeout)
}

// DialContext is Dial that ends when ctx does, with its error.
func DialContext(ctx context.Context, path string, timeout time.Duration) (*Client, error) {
	if timeout == 0 {
		timeout = 5 * time.Second
	}
	c := &Client{path: path, timeout: timeout}
	l, err := c.connect(ctx)
	if err != nil {
		return nil, err
	}
	c.version = l.Version()
	l.Close()
	return c, nil
}

// Version returns the version in the daemon's greeting to Dial: "MAJOR.MINOR.MICRO".
func (c *Client) Version() string { return c.version }

// Run executes a command. args is marshalled to a JSON object, nil for none; the reply is
// unmarshalled into out unless out is nil. Errors: *Error from the daemon; ErrNoDaemon; ErrClosed
// if the connection is lost; ctx's error when ctx ends, which also ends the command's context.
func (c *Client) Run(ctx context.Context, command string, args, out any) error {
	if _, err := json.Marshal(args); err != nil {
		return fmt.Errorf("%s: arguments: %w", command, err)
	}
	l, err := c.connect(ctx)
	if err != nil {
		return err
	}
	read := make(chan struct{})
	go func() {
		defer close(read)
		_ = l.Read(func(qmp.Event) {}) // the command learns of its end
		l.Close()
	}()
	reply, err := l.Run(ctx, command, args)
	l.Close()
	<-read
	if errors.Is(err, link.ErrDisconnected) {
		err = fmt.Errorf("%w: the daemon ended or closed the connection", ErrClosed)
	}
	if err != nil {
		return fmt.Errorf("control socket %s: %s: %w", c.path, command, err)
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(reply, out); err != nil {
		return fmt.Errorf("control socket %s: %s: reply: %w", c.path, command, err)
	}
	return nil
}

// Events returns the daemon's events from now on. The channel closes when ctx ends or the
// connection is lost. The daemon disconnects a client that does not receive.
func (c *Client) Events(ctx context.Context) (<-chan qmp.Event, error) {
	l, err := c.connect(ctx)
	if err != nil {
		return nil, err
	}
	events := make(chan qmp.Event)
	stop := context.AfterFunc(ctx, l.Close)
	go func() {
		defer close(events)
		defer stop()
		_ = l.Read(func(e qmp.Event) {
			select {
			case events <- e:
			case <-ctx.Done():
			}
		})
		l.Close()
	}()
	return events, nil
}

// connect dials and negotiates.
func (c *Client) connect(ctx context.Context) (*link.Link, error) {
	limited, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(limited, "unix", c.path)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ECONNREFUSED) {
		err = ErrNoDaemon
	}
	if err != nil {
		return nil, fmt.Errorf("control socket %s: %w", c.path, err)
	}
	l, err := link.New(limited, conn)
	if err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return nil, fmt.Errorf("control socket %s: no greeting: %w", c.path, err)
	}
	return l, nil
}
