package takeover

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"cowblk/backend/control"
)

// answerTimeout bounds each answer of the old process while it serves: it may wait for commands and
// for the sealing of former heads.
const answerTimeout = 2 * time.Minute

// greetingTimeout bounds the greeting, which does not depend on other work of the old process. Only
// a stopped process or a stalled machine takes longer.
const greetingTimeout = 30 * time.Second

// Offer holds what the old process has passed while it still serves.
type Offer struct {
	Sockets []Message // kind Socket
	Control Message   // kind Control
	NBD     []Message // kind NBD
	Exports []string  // of the NBD server

	conn *net.UnixConn
	c    *Conn
}

// Request requests the takeover of disks from the process behind the control socket at path. That
// process serves until AwaitDetach. Errors: control.ErrNoDaemon; *RefusedError; ErrProtocol.
func Request(ctx context.Context, path string, disks []string) (*Offer, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
	if err != nil {
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ECONNREFUSED) {
			err = control.ErrNoDaemon
		}
		return nil, fmt.Errorf("control socket %s: %w", path, err)
	}
	return request(ctx, conn.(*net.UnixConn), path, disks, greetingTimeout)
}

// request is Request on a connection; greeting is the time limit for the old process's greeting.
func request(
	ctx context.Context, conn *net.UnixConn, path string, disks []string, greeting time.Duration,
) (*Offer, error) {
	o := &Offer{conn: conn, c: NewConn(conn)}
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	peer := "its process"
	if p, err := control.PeerOf(conn); err == nil {
		peer = fmt.Sprintf("process %d", p.PID)
	}
	o.c.Deadline(time.Now().Add(greeting))
	_, err := o.line()
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = fmt.Errorf("it has not answered for %s: is it stopped?: %w", greeting, err)
	}
	o.c.Deadline(time.Now().Add(answerTimeout))
	if err == nil {
		err = o.sendCommand(disks)
	}
	if err == nil {
		err = o.collect()
	}
	if err != nil {
		o.Close()
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return nil, fmt.Errorf("takeover from %s through control socket %s: %w", peer, path, err)
	}
	o.c.Deadline(time.Time{})
	return o, nil
}

// sendCommand sends the control commands from the negotiation to cow-takeover.
func (o *Offer) sendCommand(disks []string) error {
	args, err := json.Marshal(Args{Version: Version, Disks: disks})
	if err == nil {
		_, err = fmt.Fprintf(o.conn, "{\"execute\":\"qmp_capabilities\"}\n"+
			"{\"execute\":%q,\"arguments\":%s}\n", Command, args)
	}
	return eofError(err)
}

// line reads exactly one line. Reading further could lose descriptors, which arrive with later
// bytes.
func (o *Offer) line() ([]byte, error) {
	var line []byte
	var b [1]byte
	for len(line) < maxMessage {
		if _, err := io.ReadFull(o.conn, b[:]); err != nil {
			return nil, eofError(err)
		}
		if b[0] == '\n' {
			return line, nil
		}
		line = append(line, b[0])
	}
	return nil, fmt.Errorf("a line of more than %d bytes: %w", maxMessage, ErrProtocol)
}

// skipLines skips replies and events of the control protocol. An error reply refuses the takeover.
func (o *Offer) skipLines() error {
	for {
		text, err := o.atLine()
		if err != nil || !text {
			return err
		}
		line, err := o.line()
		if err != nil {
			return err
		}
		var reply struct {
			Error *control.Error `json:"error"`
		}
		if json.Unmarshal(bytes.TrimSpace(line), &reply) == nil && reply.Error != nil {
			if reply.Error.Class == control.CommandNotFound {
				return fmt.Errorf("it knows no takeover, and must be stopped first: %w",
					&RefusedError{reply.Error.Desc})
			}
			return &RefusedError{reply.Error.Desc}
		}
	}
}

// atLine reports whether the next byte begins a line of the control protocol. A message begins with
// the high byte of its length, which is 0.
func (o *Offer) atLine() (bool, error) {
	raw, err := o.conn.SyscallConn()
	if err != nil {
		return false, err
	}
	var b [1]byte
	n := 0
	rerr := raw.Read(func(fd uintptr) bool {
		n, _, err = unix.Recvfrom(int(fd), b[:], unix.MSG_PEEK)
		return !errors.Is(err, unix.EAGAIN)
	})
	switch {
	case rerr != nil:
		return false, eofError(rerr)
	case err != nil:
		return false, eofError(err)
	case n == 0:
		return false, io.EOF
	}
	return b[0] != 0, nil
}

// collect receives the messages up to Ready.
func (o *Offer) collect() error {
	if err := o.skipLines(); err != nil {
		return err
	}
	for {
		m, err := o.c.Expect(Socket, Control, NBD, Export, Ready)
		if err != nil {
			return err
		}
		switch m.Kind {
		case Socket:
			o.Sockets = append(o.Sockets, m)
		case Control:
			o.Control = m
		case NBD:
			o.NBD = append(o.NBD, m)
		case Export:
			o.Exports = append(o.Exports, m.Name)
		default:
			if o.Control.FD == 0 || len(o.Sockets) == 0 {
				return fmt.Errorf("%d sockets of disks, control socket: %v: %w",
					len(o.Sockets), o.Control.FD != 0, ErrProtocol)
			}
			return nil
		}
	}
}

// Received holds what the old process has passed after it stopped serving.
type Received struct {
	Connections map[string]int // by disk: accepted, and nothing read
}

// Close closes the connections that were not taken (removed from the map).
func (r *Received) Close() {
	for _, fd := range r.Connections {
		unix.Close(fd)
	}
}

// AwaitDetach tells the old process to stop serving, and returns when it has detached the disks.
// Errors: io.EOF if the process has ended, so that the disks must be opened as after a crash;
// *RefusedError if it continues to serve.
func (o *Offer) AwaitDetach(ctx context.Context) (r *Received, err error) {
	r = &Received{Connections: map[string]int{}}
	defer func() {
		if err != nil {
			r.Close()
			r = &Received{}
		}
	}()
	defer context.AfterFunc(ctx, func() { o.conn.Close() })()
	o.c.Deadline(time.Now().Add(answerTimeout))
	defer o.c.Deadline(time.Time{})
	if err := o.c.Send(Message{Kind: Go}); err != nil {
		return r, eofError(err)
	}
	for {
		m, err := o.c.Expect(Connection, Detached)
		if err != nil {
			return r, err
		}
		if m.Kind == Detached {
			return r, nil
		}
		if old, ok := r.Connections[m.Disk]; ok {
			unix.Close(old)
		}
		r.Connections[m.Disk] = m.FD
	}
}

// Confirm tells the old process to end. An error means that it has ended already.
func (o *Offer) Confirm() error { return o.c.Send(Message{Kind: Serving}) }

// Abort tells the old process to continue. The caller must have closed the disks and released their
// locks.
func (o *Offer) Abort(why error) error {
	return o.c.Send(Message{Kind: Failed, Error: why.Error()})
}

// Close ends the conversation and closes the descriptors that were not taken (FD set to 0).
func (o *Offer) Close() error {
	for _, m := range append(append(o.Sockets, o.NBD...), o.Control) {
		if m.FD > 0 {
			unix.Close(m.FD)
		}
	}
	return o.conn.Close()
}
