package nbd

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/pojntfx/go-nbd/pkg/protocol"

	"cowblk/internal/test"
)

// waitTimeout bounds every wait in these tests. Reaching it is a failure.
const waitTimeout = 20 * time.Second

// memDisk is a disk in memory with reads that can fail or block.
type memDisk struct {
	data []byte
	fail int64 // reads that reach this byte fail; 0: none
	err  error
	wait chan struct{} // reads block until it is closed; nil: they do not
	into chan struct{} // receives a value when a read blocks
}

func (d *memDisk) Size() int64    { return int64(len(d.data)) }
func (d *memDisk) BlockSize() int { return 4096 }

func (d *memDisk) ReadAt(p []byte, off int64) (int, error) {
	if d.wait != nil {
		d.into <- struct{}{}
		<-d.wait
	}
	if d.fail > 0 && off+int64(len(p)) > d.fail {
		return 0, d.err
	}
	return bytes.NewReader(d.data).ReadAt(p, off)
}

// randomDisk returns a disk of n random bytes with a hole of zeros.
func randomDisk(n int) *memDisk {
	d := &memDisk{data: make([]byte, n)}
	rand.NewChaCha8([32]byte{byte(n)}).Read(d.data)
	clear(d.data[n/3 : n/2])
	return d
}

var quiet = slog.New(slog.DiscardHandler)

// start runs a server with one UNIX socket until the test ends.
func start(t *testing.T, o Options, exports map[string]Disk) (*Server, Address) {
	t.Helper()
	test.NoLeaks(t)
	if o.Log == nil {
		o.Log = quiet
	}
	s := New(o)
	for name, d := range exports {
		test.Must(t, s.AddExport(name, d))
	}
	a, err := s.Listen(Address{Network: "unix", Path: filepath.Join(t.TempDir(), "nbd")})
	test.Must(t, err)
	t.Cleanup(func() { test.Must(t, s.Close()) })
	return s, a
}

func dial(t *testing.T, a Address) net.Conn {
	t.Helper()
	network, addr := "unix", a.Path
	if a.Network == "tcp" {
		network, addr = "tcp", net.JoinHostPort(a.Host, strconv.Itoa(int(a.Port)))
	}
	c, err := net.Dial(network, addr)
	test.Must(t, err)
	t.Cleanup(func() { c.Close() })
	test.Must(t, c.SetDeadline(time.Now().Add(waitTimeout)))
	return c
}

// script is a scripted client.
type script struct {
	net.Conn
	t *testing.T
}

// greeted connects and reads the greeting.
func greeted(t *testing.T, a Address) *script {
	t.Helper()
	c := &script{dial(t, a), t}
	c.greet()
	return c
}

func (c *script) greet() {
	c.t.Helper()
	g := c.take(greetingLen)
	if binary.BigEndian.Uint64(g) != protocol.NEGOTIATION_MAGIC_OLDSTYLE ||
		binary.BigEndian.Uint64(g[8:]) != protocol.NEGOTIATION_MAGIC_OPTION {
		c.t.Fatalf("greeting % x", g)
	}
	c.give([]byte{0, 0, 0, 1})
}

// ready returns a client that has selected an export.
func ready(t *testing.T, a Address, name string) *script {
	t.Helper()
	c := greeted(t, a)
	c.choose(name)
	return c
}

func (c *script) choose(name string) {
	c.t.Helper()
	c.give(option(optGo, choice(name)))
	for {
		kind, data := c.optionReply(optGo)
		switch kind {
		case repAck:
			return
		case repInfo:
		default:
			c.t.Fatalf("GO %q: %#x %q", name, kind, data)
		}
	}
}

func (c *script) give(p []byte) {
	c.t.Helper()
	_, err := c.Write(p)
	test.Must(c.t, err)
}

func (c *script) take(n int) []byte {
	c.t.Helper()
	p := make([]byte, n)
	_, err := io.ReadFull(c, p)
	test.Must(c.t, err)
	return p
}

func (c *script) optionReply(id uint32) (kind uint32, data []byte) {
	c.t.Helper()
	h := c.take(optionReplyLen)
	if binary.BigEndian.Uint64(h) != protocol.NEGOTIATION_MAGIC_REPLY ||
		binary.BigEndian.Uint32(h[8:]) != id {
		c.t.Fatalf("reply to option %d: % x", id, h)
	}
	return binary.BigEndian.Uint32(h[12:]), c.take(int(binary.BigEndian.Uint32(h[16:])))
}

// reply reads the header of a reply and returns its error value.
func (c *script) reply(cookie uint64) uint32 {
	c.t.Helper()
	h := c.take(replyLen)
	if binary.BigEndian.Uint32(h) != protocol.TRANSMISSION_MAGIC_REPLY ||
		binary.BigEndian.Uint64(h[8:]) != cookie {
		c.t.Fatalf("reply to %d: % x", cookie, h)
	}
	return binary.BigEndian.Uint32(h[4:])
}

// closed checks that the server has closed the connection.
func (c *script) closed() {
	c.t.Helper()
	n, err := c.Read(make([]byte, 1))
	var timeout net.Error
	if n != 0 || err == nil || errors.As(err, &timeout) && timeout.Timeout() {
		c.t.Fatalf("read %d bytes, %v: expected the end of the connection", n, err)
	}
}

func option(id uint32, data []byte) []byte { return optionOf(id, uint32(len(data)), data) }

func optionOf(id, length uint32, data []byte) []byte {
	b := binary.BigEndian.AppendUint64(nil, protocol.NEGOTIATION_MAGIC_OPTION)
	b = binary.BigEndian.AppendUint32(b, id)
	b = binary.BigEndian.AppendUint32(b, length)
	return append(b, data...)
}

// choice returns the data of INFO and GO, with two information requests.
func choice(name string) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(len(name)))
	b = append(b, name...)
	return append(b, 0, 2, 0, 3, 0, 1)
}

func command(kind, flags uint16, cookie, offset uint64, length uint32) []byte {
	b := binary.BigEndian.AppendUint32(nil, protocol.TRANSMISSION_MAGIC_REQUEST)
	b = binary.BigEndian.AppendUint16(b, flags)
	b = binary.BigEndian.AppendUint16(b, kind)
	b = binary.BigEndian.AppendUint64(b, cookie)
	b = binary.BigEndian.AppendUint64(b, offset)
	return binary.BigEndian.AppendUint32(b, length)
}

// checkServes reads a part of an export, to check that the server works.
func checkServes(t *testing.T, a Address, name string, d *memDisk) {
	t.Helper()
	c := ready(t, a, name)
	off, n := len(d.data)/4, min(700<<10, len(d.data)/2)
	c.give(command(cmdRead, 0, 7, uint64(off), uint32(n)))
	if e := c.reply(7); e != 0 {
		t.Fatalf("error %d", e)
	}
	if !bytes.Equal(c.take(n), d.data[off:off+n]) {
		t.Fatal("content differs")
	}
	c.give(command(cmdDisc, 0, 0, 0, 0))
	c.closed()
}
