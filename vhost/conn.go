package vhost

import (
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// maxMessageFDs is the largest number of descriptors received with one message, enough for the
// largest SET_MEM_TABLE. The kernel closes further ones and reports it (MSG_CTRUNC).
const maxMessageFDs = MaxTableRegions

// Conn reads and writes whole vhost-user messages on a UNIX stream socket. One reader and one
// writer may use it at once.
type Conn struct {
	sock *net.UnixConn
	// One header or payload and its control message at a time; reused, because a message is handled
	// before the next is read.
	buf [HeaderSize + MaxPayload]byte
	oob []byte
	out []byte
}

// NewConn wraps a socket; the caller still closes it.
func NewConn(sock *net.UnixConn) *Conn {
	return &Conn{sock: sock, oob: make([]byte, unix.CmsgSpace(maxMessageFDs*4))}
}

// Limits bounds a message before its payload is read: check is called with the header alone.
type limits func(h Header) error

// ReadMessage reads the next message. Its payload is valid until the next call; its descriptors are
// the caller's, all of them close-on-exec. A payload longer than [MaxPayload] is an error before
// any of it is read. io.EOF means that the peer disconnected between two messages,
// io.ErrUnexpectedEOF within one; after an error no descriptor is left open and the stream is
// useless.
func (c *Conn) ReadMessage() (*Message, error) { return c.readMessage(nil) }

func (c *Conn) readMessage(check limits) (*Message, error) {
	m := &Message{}
	if err := c.readFull(c.buf[:HeaderSize], m); err != nil {
		m.CloseFDs()
		return nil, err
	}
	h, err := DecodeHeader(c.buf[:HeaderSize])
	if err != nil {
		m.CloseFDs()
		return nil, err
	}
	m.Header = h
	if h.Size > MaxPayload {
		err = fmt.Errorf("%v: payload of %d bytes, expected at most %d: %w", h.Request, h.Size,
			MaxPayload, ErrProtocol)
	} else if check != nil {
		err = check(h)
	}
	if err != nil {
		m.CloseFDs()
		return nil, err
	}
	m.Payload = c.buf[HeaderSize : HeaderSize+h.Size]
	if err := c.readFull(m.Payload, m); err != nil {
		m.CloseFDs()
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, fmt.Errorf("%v: payload: %w", h.Request, err)
	}
	return m, nil
}

// readFull fills p and collects the descriptors that come along. io.EOF only if nothing at all was
// read.
func (c *Conn) readFull(p []byte, m *Message) error {
	for done := 0; done < len(p); {
		n, oobn, flags, _, err := c.sock.ReadMsgUnix(p[done:], c.oob)
		if err != nil {
			if done > 0 && errors.Is(err, io.EOF) {
				return io.ErrUnexpectedEOF
			}
			return err
		}
		done += n
		got := 0
		if oobn > 0 {
			fds, err := parseFDs(c.oob[:oobn])
			got = len(fds)
			m.FDs = append(m.FDs, fds...)
			if err != nil {
				return err
			}
		}
		switch {
		case len(m.FDs) > maxMessageFDs:
			return fmt.Errorf("more than %d descriptors with one message: %w", maxMessageFDs,
				ErrProtocol)
		case flags&unix.MSG_CTRUNC != 0:
			return truncated(got)
		}
	}
	return nil
}

// truncated returns the reason for which the kernel passed only got descriptors: the message had
// more than the maximum, or this process has reached its limit of open files.
func truncated(got int) error {
	if got >= maxMessageFDs {
		return fmt.Errorf("more than %d descriptors with one message: %w", maxMessageFDs,
			ErrProtocol)
	}
	return fmt.Errorf("the front-end has sent more than %d descriptors, and this process can have no more files open "+
		"(raise its limit: LimitNOFILE= in its systemd unit, ulimit -Hn in the shell that starts it): %w", got, unix.EMFILE)
}

// parseFDs returns the descriptors of all SCM_RIGHTS messages in oob, also on error, so that the
// caller can close them.
func parseFDs(oob []byte) ([]int, error) {
	scms, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("control message: %w", err)
	}
	var fds []int
	for i := range scms {
		if scms[i].Header.Level != unix.SOL_SOCKET || scms[i].Header.Type != unix.SCM_RIGHTS {
			continue
		}
		got, err := unix.ParseUnixRights(&scms[i])
		fds = append(fds, got...)
		if err != nil {
			return fds, fmt.Errorf("descriptors: %w", err)
		}
	}
	return fds, nil
}

// WriteMessage sends a message; h.Size is set from the payload. The descriptors stay the caller's.
func (c *Conn) WriteMessage(h Header, payload []byte, fds ...int) error {
	h.Size = uint32(len(payload))
	c.out = append(h.Append(c.out[:0]), payload...)
	return c.WriteRaw(c.out, fds...)
}

// WriteRaw sends bytes as they are, for tests that break the framing, with descriptors at the first
// byte.
func (c *Conn) WriteRaw(b []byte, fds ...int) error {
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	for len(b) > 0 {
		n, _, err := c.sock.WriteMsgUnix(b, oob, nil)
		if err != nil {
			return err
		}
		b, oob = b[n:], nil
	}
	return nil
}

// disconnected reports whether err only means that the peer disconnected or that this side closed
// the socket.
func disconnected(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) ||
		errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// closeFD closes a descriptor that came from the peer; -1 is none. Errors are ignored, because the
// descriptor is closed in any case.
func closeFD(fd int) {
	if fd >= 0 {
		_ = unix.Close(fd)
	}
}

// dupFD duplicates a descriptor, close-on-exec; -1 stays -1.
func dupFD(fd int) (int, error) {
	if fd < 0 {
		return -1, nil
	}
	n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("duplicating a descriptor: %w", err)
	}
	return n, nil
}
