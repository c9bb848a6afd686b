package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"testing"

	"github.com/pojntfx/go-nbd/pkg/protocol"
	"golang.org/x/sys/unix"

	"cowblk/internal/test"
)

// memory is a disk that counts its flushes and fails the third.
type memory struct {
	bytes   []byte
	flushes int
}

func (m *memory) ReadAt(p []byte, off int64) (int, error)  { return copy(p, m.bytes[off:]), nil }
func (m *memory) WriteAt(p []byte, off int64) (int, error) { return copy(m.bytes[off:], p), nil }
func (m *memory) Flush() error {
	m.flushes++
	if m.flushes == 3 {
		return io.ErrUnexpectedEOF
	}
	return nil
}

// wire joins the client's requests and the replies.
type wire struct {
	io.Reader
	io.Writer
}

func TestServe(t *testing.T) {
	var sent, got bytes.Buffer
	send := func(kind uint16, off uint64, length uint32, data []byte) {
		q := protocol.TransmissionRequestHeader{RequestMagic: protocol.TRANSMISSION_MAGIC_REQUEST,
			Type: kind, Handle: off + 7, Offset: off, Length: length}
		test.Must(t, binary.Write(&sent, binary.BigEndian, q))
		sent.Write(data)
	}
	want := bytes.Repeat([]byte{0xa5}, 512)
	send(protocol.TRANSMISSION_TYPE_REQUEST_WRITE, 1024, 512, want)
	send(typeFlush, 0, 0, nil)
	send(protocol.TRANSMISSION_TYPE_REQUEST_READ, 1024, 512, nil)
	send(typeFlush, 0, 0, nil)
	send(typeFlush, 0, 0, nil)
	send(77, 0, 0, nil)
	send(protocol.TRANSMISSION_TYPE_REQUEST_DISC, 0, 0, nil)
	d := &memory{bytes: make([]byte, 4096)}
	test.Must(t, serve(wire{&sent, &got}, d))
	for i, e := range []struct {
		handle uint64
		err    uint32
		data   []byte
	}{{1031, 0, nil}, {7, 0, nil}, {1031, 0, want}, {7, 0, nil}, {7, uint32(unix.EIO), nil},
		{7, uint32(unix.EIO), nil}} {
		var r protocol.TransmissionReplyHeader
		test.Must(t, binary.Read(&got, binary.BigEndian, &r))
		if r.ReplyMagic != protocol.TRANSMISSION_MAGIC_REPLY || r.Handle != e.handle ||
			r.Error != e.err || !bytes.Equal(got.Next(len(e.data)), e.data) {
			t.Errorf("reply %d: %+v, expected handle %d, error %d and %d bytes", i, r, e.handle,
				e.err, len(e.data))
		}
	}
	if got.Len() > 0 {
		t.Errorf("%d bytes after the last reply", got.Len())
	}
}

func TestServeRefuses(t *testing.T) {
	for name, b := range map[string][]byte{
		"magic": make([]byte, 28),
		"length": append(binary.BigEndian.AppendUint32(nil, protocol.TRANSMISSION_MAGIC_REQUEST),
			bytes.Repeat([]byte{0xff}, 24)...),
		"cut short": binary.BigEndian.AppendUint32(nil, protocol.TRANSMISSION_MAGIC_REQUEST),
	} {
		if err := serve(wire{bytes.NewReader(b), io.Discard}, &memory{}); err == nil ||
			errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
