package nbd

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/pojntfx/go-nbd/pkg/server"
)

// phase is where a connection is.
type phase uint8

const (
	atGreeting phase = iota // nothing read yet
	atOptions
	atRequests
	atEnd // the client said goodbye
)

// guard is the net.Conn that go-nbd gets in place of the client's. Everything
// happens on the client's goroutine: go-nbd reads what it wants next only when it
// has written all of its answer to what came before, so Read first takes care of
// that answer, and then of the client's next message.
//
// It is also what go-nbd knows of the export: slot and options are filled in
// before go-nbd sees the option that names it.
type guard struct {
	conn    net.Conn
	server  *Server
	client  *client
	br      *bufio.Reader // the client's bytes
	export  server.Export
	options server.Options

	phase        phase
	input        []byte // what go-nbd is to read next
	inputBuf     [optionHeaderLen + 4 + maxName + 2]byte
	replies      []byte // of go-nbd to the greeting or to one option
	option       uint32 // which one
	byExportName bool   // the client has sent EXPORT_NAME, of which go-nbd sees GO
	// noZeroes: the client takes the reply to EXPORT_NAME without zeros.
	noZeroes bool
	count    int   // options so far
	disk     Disk  // of the export
	size     int64 // its size, bytes

	req    request
	header []byte      // of go-nbd's reply to the piece under way
	out    net.Buffers // one write of a reply
	unsent net.Buffers
	sent   int64 // bytes of content
}

func newGuard(s *Server, c *client) *guard {
	g := &guard{
		conn: c.conn, server: s, client: c, br: bufio.NewReader(c.conn),
		options: server.Options{
			ReadOnly: true, SupportsMultiConn: true,
			MinimumBlockSize: 1, PreferredBlockSize: 4096, MaximumBlockSize: maxRequest, MaximumRequestSize: maxRequest,
		},
		header: make([]byte, 0, replyLen),
		out:    make(net.Buffers, 0, 2),
	}
	g.export.Backend = (*reader)(g)
	// One deadline for all of the handshake: a client that sends a byte now and then
	// does not last longer.
	c.conn.SetDeadline(time.Now().Add(s.opts.HandshakeTime))
	return g
}

// Read gives go-nbd the next bytes of what it may see. It implements net.Conn.
func (g *guard) Read(p []byte) (int, error) {
	for len(g.input) == 0 {
		if err := g.nextMessage(); err != nil {
			return 0, err
		}
	}
	n := copy(p, g.input)
	g.input = g.input[n:]
	return n, nil
}

// nextMessage sends what go-nbd has answered and fetches the client's next message; g.in
// stays empty if the guard has answered that one itself.
func (g *guard) nextMessage() error {
	switch g.phase {
	case atGreeting:
		return g.greet()
	case atOptions:
		if err := g.sendReplies(); err != nil {
			return err
		}
		if g.phase == atRequests { // it was GO
			return nil
		}
		return g.nextOption()
	case atRequests:
		return g.nextRequest()
	}
	return io.EOF
}

// Write takes go-nbd's answers. It implements net.Conn.
func (g *guard) Write(p []byte) (int, error) {
	if g.phase == atRequests {
		return g.writeReply(p)
	}
	if len(g.replies)+len(p) > maxReplies {
		return 0, fmt.Errorf("%w: more than %d bytes to one option", errReply, maxReplies)
	}
	g.replies = append(g.replies, p...)
	return len(p), nil
}

// finish sends what go-nbd wrote last before it ended without an error: the answer
// to ABORT.
func (g *guard) finish() error {
	if g.phase == atOptions {
		return g.sendReplies()
	}
	return nil
}

func (g *guard) established() bool { return g.phase >= atRequests }

// greet sends go-nbd's greeting and reads the client's flags.
func (g *guard) greet() error {
	if len(g.replies) != greetingLen {
		return fmt.Errorf("%w: a greeting of %d bytes", errReply, len(g.replies))
	}
	// go-nbd does not know EXPORT_NAME, and so not the flag either: it is the guard's.
	offered := uint32(binary.BigEndian.Uint16(g.replies[16:])) | flagNoZeroes
	binary.BigEndian.PutUint16(g.replies[16:], uint16(offered))
	if err := g.send(g.replies); err != nil {
		return err
	}
	g.replies = g.replies[:0]
	flags := g.inputBuf[:clientFlagsLen]
	if _, err := io.ReadFull(g.br, flags); err != nil {
		return err
	}
	f := binary.BigEndian.Uint32(flags)
	if f&^offered != 0 {
		return protocolf("client flags %#x, only %#x were offered", f, offered)
	}
	g.noZeroes = f&flagNoZeroes != 0
	binary.BigEndian.PutUint32(flags, f&^flagNoZeroes)
	g.input, g.phase = flags, atOptions
	return nil
}

// send writes all of p to the client.
func (g *guard) send(p []byte) error {
	_, err := g.conn.Write(p)
	return err
}

// receive fills p from the client once the handshake is over: the first byte may
// take IdleTime, the rest StallTime.
func (g *guard) receive(p []byte) error {
	if g.br.Buffered() < len(p) {
		now := time.Now()
		if g.br.Buffered() == 0 {
			g.conn.SetReadDeadline(now.Add(g.server.opts.IdleTime))
			if _, err := g.br.Peek(1); err != nil {
				return err
			}
			now = time.Now()
		}
		g.conn.SetReadDeadline(now.Add(g.server.opts.StallTime))
	}
	_, err := io.ReadFull(g.br, p)
	return err
}

// discard drops n bytes that the client has announced.
func (g *guard) discard(n int) error {
	g.conn.SetReadDeadline(time.Now().Add(g.server.opts.StallTime))
	_, err := g.br.Discard(n)
	return err
}

// The rest of net.Conn. go-nbd uses none of it.

// Close closes the client's connection.
func (g *guard) Close() error { return g.conn.Close() }

// LocalAddr is the client's connection's.
func (g *guard) LocalAddr() net.Addr { return g.conn.LocalAddr() }

// RemoteAddr is the client's connection's.
func (g *guard) RemoteAddr() net.Addr { return g.conn.RemoteAddr() }

// SetDeadline fails: deadlines are the guard's.
func (g *guard) SetDeadline(time.Time) error { return errors.ErrUnsupported }

// SetReadDeadline fails, as SetDeadline.
func (g *guard) SetReadDeadline(time.Time) error { return errors.ErrUnsupported }

// SetWriteDeadline fails, as SetDeadline.
func (g *guard) SetWriteDeadline(time.Time) error { return errors.ErrUnsupported }
