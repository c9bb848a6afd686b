package nbd

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"github.com/pojntfx/go-nbd/pkg/server"

	"cowblk/internal/test"
)

// tape is a connection whose client has sent all its input already.
type tape struct {
	io.Reader
	out bytes.Buffer
}

func (c *tape) Write(p []byte) (int, error)      { return c.out.Write(p) }
func (c *tape) Close() error                     { return nil }
func (c *tape) LocalAddr() net.Addr              { return &net.UnixAddr{} }
func (c *tape) RemoteAddr() net.Addr             { return &net.UnixAddr{} }
func (c *tape) SetDeadline(time.Time) error      { return nil }
func (c *tape) SetReadDeadline(time.Time) error  { return nil }
func (c *tape) SetWriteDeadline(time.Time) error { return nil }

// FuzzGuard plays arbitrary clients. go-nbd and the guard must agree (no errReply), the output must
// parse, and only reads within the export may succeed.
func FuzzGuard(f *testing.F) {
	hello := []byte{0, 0, 0, 1}
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	f.Add(join(hello, option(optGo, choice("x")), command(cmdRead, 0, 1, 0, 512),
		command(cmdDisc, 0, 0, 0, 0)))
	f.Add(join(hello, option(optList, nil), option(optInfo, choice("y")), option(optAbort, nil)))
	f.Add(join(hello, option(8, nil), option(optGo, choice("z")), option(optGo, choice("")),
		option(optGo, choice("y")),
		command(cmdWrite, 0, 1, 0, 4), []byte("data"), command(cmdTrim, 0, 2, 0, 512),
		command(cmdRead, 0, 3, 100, 400)))
	f.Add(join(hello, optionOf(optGo, 1<<31, nil)))
	f.Add(join(hello, option(optGo, choice("x")), command(cmdRead, 0, 1, 0, chunkSize+512),
		command(cmdRead, 0, 1, 1<<63, 1<<31)))
	s := New(Options{Log: quiet})
	test.Must(f, s.AddExport("x", randomDisk(chunkSize+512)))
	broken := randomDisk(1024)
	broken.fail, broken.err = 512, io.ErrClosedPipe
	test.Must(f, s.AddExport("y", broken))
	f.Fuzz(func(t *testing.T, sent []byte) {
		conn := &tape{Reader: bytes.NewReader(sent)}
		c := &client{conn: conn}
		g := newGuard(s, c)
		err := server.Handle(g, []*server.Export{&g.export}, &g.options)
		if err == nil {
			err = g.finish()
		}
		s.mu.Lock()
		s.unpin(c)
		s.mu.Unlock()
		if errors.Is(err, errReply) {
			t.Fatal(err)
		}
		checkOutput(t, conn.out.Bytes(), g)
	})
}

func checkOutput(t *testing.T, out []byte, g *guard) {
	if len(out) < greetingLen {
		t.Fatalf("only %d bytes", len(out))
	}
	out = out[greetingLen:]
	for len(out) > 0 && binary.BigEndian.Uint32(out) == 0x3e889 {
		n := binary.BigEndian.Uint32(out[16:])
		if g.established() && binary.BigEndian.Uint32(out[8:]) == optGo &&
			binary.BigEndian.Uint32(out[12:]) == repInfo && n == infoExportLen &&
			binary.BigEndian.Uint16(out[optionReplyLen:]) == 0 &&
			binary.BigEndian.Uint16(out[optionReplyLen+10:]) != transmissionFlags {
			t.Fatalf("flags % x", out[optionReplyLen:][:n])
		}
		out = out[optionReplyLen+n:]
	}
	if !g.established() && len(out) > 0 {
		t.Fatalf("%d bytes after the handshake", len(out))
	}
	if int64(len(out)) < g.sent {
		t.Fatalf("%d bytes of content, %d in all", g.sent, len(out))
	}
}
