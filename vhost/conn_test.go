package vhost

import (
	"errors"
	"io"
	"net"
	"testing"

	"golang.org/x/sys/unix"

	"cowblk/internal/test"
)

// socketPair returns both ends of a UNIX stream connection, which are closed at the end of the
// test.
func socketPair(t testing.TB) (a, b *net.UnixConn) {
	t.Helper()
	a, b = test.SocketPair(t)
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

func eventFDs(t testing.TB, n int) []int {
	t.Helper()
	fds := make([]int, n)
	for i := range fds {
		fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
		test.Must(t, err)
		fds[i] = fd
		t.Cleanup(func() { unix.Close(fd) })
	}
	return fds
}

func TestReadMessage(t *testing.T) {
	text := test.Texts(t, "message.texts")
	msg := func(payload ...byte) []byte {
		h := Header{Request: SetFeatures, Flags: FlagVersion, Size: uint32(len(payload))}
		return append(h.Append(nil), payload...)
	}
	for _, c := range []struct {
		name   string
		writes [][]byte // sent one by one
		fds    []int    // descriptors with each write
		close  bool     // after the writes
		size   int      // of the payload expected
		nfds   int
		err    error // expected instead
	}{
		{name: "whole", writes: [][]byte{msg(1, 2, 3)}, size: 3},
		{name: "no payload", writes: [][]byte{msg()}},
		{name: "byte by byte", writes: [][]byte{msg(9)[:1], msg(9)[1:5], msg(9)[5:12], msg(9)[12:]},
			size: 1},
		{name: "fds with header", writes: [][]byte{msg(1)}, fds: []int{8}, size: 1, nfds: 8},
		{name: "fds with payload", writes: [][]byte{msg(1)[:12], msg(1)[12:]}, fds: []int{0, 2},
			size: 1, nfds: 2},
		{name: "fds with both", writes: [][]byte{msg(1)[:12], msg(1)[12:]}, fds: []int{3, 2},
			size: 1, nfds: 5},
		{name: "nine fds", writes: [][]byte{msg(1)}, fds: []int{9}, err: ErrProtocol},
		{name: "200 fds", writes: [][]byte{msg(1)}, fds: []int{200}, err: ErrProtocol},
		{name: "nine fds in two", writes: [][]byte{msg(1)[:3], msg(1)[3:]}, fds: []int{8, 1},
			err: ErrProtocol},
		{name: "too long", writes: [][]byte{Header{Request: SetMemTable, Flags: 1,
			Size: MaxPayload + 1}.Append(nil)}, fds: []int{2}, err: ErrProtocol},
		{name: "4 GiB", writes: [][]byte{Header{Request: 99, Flags: 1, Size: 1<<32 - 1}.Append(
			nil)}, err: ErrProtocol},
		{name: "nothing", close: true, err: io.EOF},
		{name: "half a header", writes: [][]byte{msg(1)[:7]}, fds: []int{1}, close: true,
			err: io.ErrUnexpectedEOF},
		{name: "header only", writes: [][]byte{msg(1)[:12]}, fds: []int{1}, close: true,
			err: io.ErrUnexpectedEOF},
		{name: "half a payload", writes: [][]byte{msg(1, 2, 3)[:14]}, fds: []int{1}, close: true,
			err: io.ErrUnexpectedEOF},
	} {
		t.Run(c.name, func(t *testing.T) {
			a, b := socketPair(t)
			all := eventFDs(t, 200)
			before := test.CountFDs(t)
			w := NewConn(a)
			for i, p := range c.writes {
				n := 0
				if i < len(c.fds) {
					n = c.fds[i]
				}
				test.Must(t, w.WriteRaw(p, all[:n]...))
			}
			if c.close {
				a.Close()
				before--
			}
			m, err := NewConn(b).ReadMessage()
			if c.err != nil {
				if text(t, c.name, err); !errors.Is(err, c.err) {
					t.Errorf("%v, expected %v", err, c.err)
				}
			} else if err != nil {
				t.Fatal(err)
			} else {
				if m.Request != SetFeatures || len(m.Payload) != c.size || len(m.FDs) != c.nfds {
					t.Errorf("%v with %d bytes and %d descriptors, expected %d and %d", m.Request,
						len(m.Payload), len(m.FDs), c.size, c.nfds)
				}
				for _, fd := range m.FDs {
					if f, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil ||
						f&unix.FD_CLOEXEC == 0 {
						t.Errorf("descriptor %d: flags %#x, %v, expected close-on-exec", fd, f, err)
					}
				}
				m.CloseFDs()
			}
			test.Equal(t, test.CountFDs(t), before, "descriptors are open")
		})
	}
}

// For any input, with any number of descriptors, ReadMessage returns a message or an error, and
// leaks no descriptor.
func FuzzReadMessage(f *testing.F) {
	f.Add(Header{Request: SetFeatures, Flags: 1, Size: 8}.Append(nil), uint8(1), uint8(12),
		[]byte{1, 2, 3, 4, 5, 6, 7, 8}, uint8(1))
	f.Add(Header{Request: SetMemTable, Flags: 1, Size: 1 << 20}.Append(nil), uint8(9), uint8(3),
		[]byte{}, uint8(0))
	f.Fuzz(func(t *testing.T, head []byte, fds1, cut uint8, rest []byte, fds2 uint8) {
		a, b := socketPair(t)
		all := eventFDs(t, 16)
		before := test.CountFDs(t)
		w := NewConn(a)
		stream := append(append([]byte(nil), head...), rest...)
		at := min(int(cut), len(stream))
		for _, p := range []struct {
			b []byte
			n uint8
		}{{stream[:at], fds1 % 17}, {stream[at:], fds2 % 17}} {
			if len(p.b) > 0 && len(p.b) < 64<<10 {
				test.Must(t, w.WriteRaw(p.b, all[:p.n]...))
			}
		}
		a.Close()
		r := NewConn(b)
		for {
			m, err := r.ReadMessage()
			if err != nil {
				break
			}
			if len(m.Payload) != int(m.Size) || len(m.FDs) > maxMessageFDs {
				t.Errorf("%v: %d bytes of %d, %d descriptors", m.Request, len(m.Payload), m.Size,
					len(m.FDs))
			}
			m.CloseFDs()
		}
		// Unread descriptors belong to the socket and are closed with it.
		b.Close()
		test.Equal(t, test.CountFDs(t), before-2, "descriptors are open")
	})
}
