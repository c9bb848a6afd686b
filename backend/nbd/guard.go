package nbd

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/pojntfx/go-nbd/pkg/server"
)

// phase is the state of a connection.
type phase uint8

const (
	atGreeting phase = iota // nothing read
	atOptions
	atRequests
	atEnd // after NBD_CMD_DISC
)

// guard is the net.Conn that go-nbd uses in place of the client's. Everything runs on the client's
// goroutine: go-nbd calls Read only after it has written its whole answer, so Read first sends that
// answer and then reads the client's next message.
//
// The guard also describes the export to go-nbd: export and options are set before go-nbd reads the
// option that selects the export.
type guard struct {
	net.Conn // the client's; go-nbd uses only Read and Write, which the guard replaces
	server   *Server
	client   *client
	br       *bufio.Reader // reads from the client
	export   server.Export
	options  server.Options

	phase        phase
	input        []byte // to be read by go-nbd
	inputBuf     [optionHeaderLen + 4 + maxName + 2]byte
	replies      []byte // by go-nbd to the greeting or to one option
	option       uint32 // to which replies belong
	byExportName bool   // the client sent EXPORT_NAME, forwarded as GO
	// noZeroes: the reply to EXPORT_NAME ends without zeros.
	noZeroes bool
	count    int   // options so far
	disk     Disk  // of the export
	size     int64 // in bytes

	req    request
	header []byte      // of go-nbd's reply to the current piece
	out    net.Buffers // one write of a reply
	unsent net.Buffers
	sent   int64 // bytes of data
}

func newGuard(s *Server, c *client) *guard {
	g := &guard{
		Conn: c.conn, server: s, client: c, br: bufio.NewReader(c.conn),
		options: server.Options{
			ReadOnly: true, SupportsMultiConn: true,
			MinimumBlockSize: 1, PreferredBlockSize: 4096,
			MaximumBlockSize: maxRequest, MaximumRequestSize: maxRequest,
		},
		header: make([]byte, 0, replyLen),
		out:    make(net.Buffers, 0, 2),
	}
	g.export.Backend = (*reader)(g)
	// One deadline for the whole handshake, which a slow client cannot extend.
	c.conn.SetDeadline(time.Now().Add(s.opts.HandshakeTime))
	return g
}

// Read returns the next bytes for go-nbd. It implements net.Conn.
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

// nextMessage sends go-nbd's answer and reads the client's next message. g.input stays empty if the
// guard answers the message itself.
func (g *guard) nextMessage() error {
	switch g.phase {
	case atGreeting:
		return g.greet()
	case atOptions:
		if err := g.sendReplies(); err != nil {
			return err
		}
		if g.phase == atRequests { // after GO
			return nil
		}
		return g.nextOption()
	case atRequests:
		return g.nextRequest()
	}
	return io.EOF
}

// Write takes go-nbd's answer. It implements net.Conn.
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

// finish sends go-nbd's last answer, to ABORT, after go-nbd has returned without an error.
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
	// The guard implements NO_ZEROES together with EXPORT_NAME, which go-nbd does not know.
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
	_, err := g.Conn.Write(p)
	return err
}

// receive fills p after the handshake. The first byte may take IdleTime, the rest StallTime.
func (g *guard) receive(p []byte) error {
	if g.br.Buffered() < len(p) {
		now := time.Now()
		if g.br.Buffered() == 0 {
			g.Conn.SetReadDeadline(now.Add(g.server.opts.IdleTime))
			if _, err := g.br.Peek(1); err != nil {
				return err
			}
			now = time.Now()
		}
		g.Conn.SetReadDeadline(now.Add(g.server.opts.StallTime))
	}
	_, err := io.ReadFull(g.br, p)
	return err
}

// discard skips n bytes of payload.
func (g *guard) discard(n int) error {
	g.Conn.SetReadDeadline(time.Now().Add(g.server.opts.StallTime))
	_, err := g.br.Discard(n)
	return err
}
