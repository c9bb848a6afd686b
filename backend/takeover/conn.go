package takeover

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// maxMessage bounds one message, in bytes.
const maxMessage = 64 << 10

// ErrProtocol says that the other process violated the protocol.
var ErrProtocol = errors.New("the other process does not keep to the protocol")

// Conn is one end of the conversation. It must be used by one goroutine at a time.
type Conn struct{ conn *net.UnixConn }

// NewConn returns a Conn on conn, which the caller closes.
func NewConn(conn *net.UnixConn) *Conn { return &Conn{conn} }

// Deadline sets the deadline of all later sends and receives; zero: none.
func (c *Conn) Deadline(t time.Time) { c.conn.SetDeadline(t) }

// Send sends a message. m.FD stays open.
func (c *Conn) Send(m Message) error {
	if carriesFD(m.Kind) != (m.FD > 0) {
		return fmt.Errorf("message %q with file descriptor %d: %w", m.Kind, m.FD, ErrProtocol)
	}
	body, err := json.Marshal(m)
	if err == nil && len(body) > maxMessage {
		err = fmt.Errorf("%d bytes, expected at most %d", len(body), maxMessage)
	}
	if err != nil {
		return fmt.Errorf("message %q: %w", m.Kind, err)
	}
	body = append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...)
	var oob []byte
	if m.FD > 0 {
		oob = unix.UnixRights(m.FD)
	}
	// The descriptor was sent with the first part of a short write.
	n, _, err := c.conn.WriteMsgUnix(body, oob, nil)
	if err == nil && n < len(body) {
		_, err = c.conn.Write(body[n:])
	}
	if err != nil {
		return fmt.Errorf("message %q: %w", m.Kind, err)
	}
	return nil
}

// Receive returns the next message. io.EOF: the other process has ended.
func (c *Conn) Receive() (m Message, err error) {
	var head [4]byte
	oob := make([]byte, unix.CmsgSpace(4*4))
	n, oobn, flags, _, err := c.conn.ReadMsgUnix(head[:], oob)
	fds, ferr := rights(oob[:oobn])
	defer func() {
		if err != nil {
			closeAll(fds)
		}
	}()
	switch {
	case err != nil:
		return m, eofError(err)
	case n == 0:
		return m, io.EOF
	case ferr != nil || flags&unix.MSG_CTRUNC != 0:
		return m, fmt.Errorf("file descriptors: %w", errors.Join(ErrProtocol, ferr))
	}
	if _, err := io.ReadFull(c.conn, head[n:]); err != nil {
		return m, eofError(err)
	}
	size := binary.BigEndian.Uint32(head[:])
	if size > maxMessage {
		return m, fmt.Errorf("message of %d bytes, expected at most %d: %w",
			size, maxMessage, ErrProtocol)
	}
	body := make([]byte, size)
	if _, err := io.ReadFull(c.conn, body); err != nil {
		return m, eofError(err)
	}
	if err := json.Unmarshal(body, &m); err != nil {
		return m, fmt.Errorf("message: %w: %w", ErrProtocol, err)
	}
	m.FD = 0
	if carriesFD(m.Kind) {
		if len(fds) != 1 {
			return m, fmt.Errorf("message %q: expected one file descriptor, found %d: %w",
				m.Kind, len(fds), ErrProtocol)
		}
		m.FD = fds[0]
		return m, nil
	}
	closeAll(fds)
	return m, nil
}

// Expect receives a message of one of these kinds. Refused and Failed become a *RefusedError unless
// they are expected.
func (c *Conn) Expect(kinds ...string) (Message, error) {
	m, err := c.Receive()
	if err != nil {
		return m, err
	}
	if slices.Contains(kinds, m.Kind) {
		return m, nil
	}
	if m.FD > 0 {
		unix.Close(m.FD)
	}
	if m.Kind == Refused || m.Kind == Failed {
		return m, &RefusedError{m.Error}
	}
	return m, fmt.Errorf("message %q, expected one of %q: %w", m.Kind, kinds, ErrProtocol)
}

// RefusedError is the reason for which the other process refused or failed.
type RefusedError struct{ Reason string }

func (e *RefusedError) Error() string { return e.Reason }

// eofError maps all errors of a closed connection to io.EOF.
func eofError(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE) {
		return io.EOF
	}
	return err
}

func rights(oob []byte) (fds []int, err error) {
	if len(oob) == 0 {
		return nil, nil
	}
	all, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	for i := range all {
		if all[i].Header.Level != unix.SOL_SOCKET || all[i].Header.Type != unix.SCM_RIGHTS {
			continue
		}
		more, err := unix.ParseUnixRights(&all[i])
		if err != nil {
			return fds, err
		}
		fds = append(fds, more...)
	}
	return fds, nil
}

func closeAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}
