package vhost_test

import (
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cowblk/internal/test"
	"cowblk/vhost"
	"cowblk/vhost/guest"
)

// sent is one message of a recorded stream.
type sent struct {
	bytes []byte
	fds   []byte // kinds of descriptors, see kinds
}

// Kinds of descriptors that streams carry.
const (
	memoryFD = iota // a memfd of 4 MiB
	eventFD
	pipeFD
	smallFD // a memfd of one page
	kinds
)

// descriptors opens one of each kind.
func descriptors(t testing.TB) [kinds]int {
	t.Helper()
	var fds [kinds]int
	for i, size := range map[int]int64{memoryFD: 4 << 20, smallFD: 4096} {
		fd, err := unix.MemfdCreate("guest", unix.MFD_CLOEXEC)
		test.Must(t, err)
		test.Must(t, unix.Ftruncate(fd, size))
		fds[i] = fd
	}
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	test.Must(t, err)
	fds[eventFD] = fd
	var pipe [2]int
	test.Must(t, unix.Pipe2(pipe[:], unix.O_CLOEXEC))
	closeAll(pipe[1])
	fds[pipeFD] = pipe[0]
	t.Cleanup(func() { closeAll(fds[:]...) })
	return fds
}

// startSequence has the messages of QEMU 10 from connection to running rings, and from there to its
// exit.
func startSequence() []sent {
	msg := func(r vhost.Request, flags uint32, payload []byte, fds ...byte) sent {
		h := vhost.Header{Request: r, Flags: vhost.FlagVersion | flags, Size: uint32(len(payload))}
		return sent{append(h.Append(nil), payload...), fds}
	}
	ask := vhost.FlagNeedReply
	out := []sent{
		msg(vhost.GetFeatures, 0, nil),
		msg(vhost.GetProtocolFeatures, 0, nil),
		msg(vhost.SetProtocolFeatures, 0, u64(vhost.ProtocolFeatures)),
		msg(vhost.GetQueueNum, 0, nil),
		msg(vhost.GetMaxMemSlots, 0, nil),
		msg(vhost.SetBackendReqFD, ask, nil, eventFD),
		msg(vhost.SetOwner, 0, nil),
		msg(vhost.GetConfig, 0, vhost.ConfigSpace{Size: 60, Data: make([]byte, 60)}.Append(nil)),
		msg(vhost.SetFeatures, 0, u64(vhost.FeatureVersion1|vhost.FeatureProtocolFeatures)),
		msg(vhost.GetStatus, 0, nil),
		msg(vhost.SetStatus, 0, u64(8)),
		msg(vhost.AddMemReg, ask, vhost.AppendMemReg(nil, reg(0, 2<<20, 1<<40, 0)), memoryFD),
		msg(vhost.AddMemReg, ask, vhost.AppendMemReg(nil, reg(2<<20, 2<<20, 1<<41, 2<<20)),
			memoryFD),
	}
	for i := range uint32(2) {
		out = append(out,
			msg(vhost.SetVringCall, 0, u64(uint64(i)), eventFD),
			msg(vhost.SetVringErr, 0, u64(uint64(i)), eventFD),
			msg(vhost.SetVringNum, 0, state(i, 128)),
			msg(vhost.SetVringBase, 0, state(i, 0)),
			msg(vhost.SetVringAddr, 0, addr(i, 0, 1<<40, 1<<40+4096, 1<<40+8192)),
			msg(vhost.SetVringKick, 0, u64(uint64(i)), eventFD),
			msg(vhost.SetVringEnable, ask, state(i, 1)))
	}
	return append(out,
		msg(vhost.SetVringCall, 0, u64(0), eventFD),
		msg(vhost.SetVringEnable, ask, state(0, 0)),
		msg(vhost.GetVringBase, 0, state(0, 0)),
		msg(vhost.RemMemReg, ask, vhost.AppendMemReg(nil, reg(2<<20, 2<<20, 1<<41, 0)), memoryFD),
		msg(vhost.SetMemTable, ask, vhost.AppendMemTable(nil,
			[]guest.RegionDesc{reg(0, 4<<20, 1<<40, 0)}), memoryFD),
		msg(vhost.ResetDevice, 0, nil))
}

// write sends up to limit bytes of a message, with its descriptors at the first byte. The back-end
// may have disconnected.
func write(t testing.TB, conn *net.UnixConn, m sent, fds [kinds]int, limit int) {
	t.Helper()
	b := m.bytes[:min(limit, len(m.bytes))]
	if len(b) == 0 {
		return
	}
	var send []int
	for _, k := range m.fds {
		send = append(send, fds[k%kinds])
	}
	var oob []byte
	if len(send) > 0 {
		oob = unix.UnixRights(send...)
	}
	if _, _, err := conn.WriteMsgUnix(b, oob, nil); err != nil && !errors.Is(err, unix.EPIPE) &&
		!errors.Is(err, unix.ECONNRESET) {
		t.Fatal(err)
	}
}

// The front-end may disconnect after any byte.
func TestDisconnectAtEveryByte(t *testing.T) {
	fds := descriptors(t)
	stream := startSequence()
	total := 0
	for _, m := range stream {
		total += len(m.bytes)
	}
	for end := range total + 1 {
		s := serve(t, newFake(2))
		left := end
		for _, m := range stream {
			write(t, s.conn, m, fds, left)
			left = max(0, left-len(m.bytes))
		}
		if err := s.wait(); err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatalf("disconnected after %d of %d bytes: %v", end, total, err)
		}
	}
}

// Every message of the sequence is left out, sent twice, or exchanged with the next: the session
// obeys or ends, and cleans up.
func TestReordered(t *testing.T) {
	fds := descriptors(t)
	stream := startSequence()
	play := func(ms []sent) {
		t.Helper()
		s := serve(t, newFake(2))
		for _, m := range ms {
			write(t, s.conn, m, fds, len(m.bytes))
		}
		s.wait()
	}
	for i := range stream {
		play(append(append([]sent(nil), stream[:i]...), stream[i+1:]...))
		play(append(append(append([]sent(nil), stream[:i]...), stream[i]), stream[i:]...))
		for j := i + 1; j < len(stream); j++ {
			swapped := append([]sent(nil), stream...)
			swapped[i], swapped[j] = swapped[j], swapped[i]
			play(swapped)
		}
	}
}

// A front-end that sends requests and never reads the answers blocks only its own session, which
// ends with the connection.
func TestAnswersNeverRead(t *testing.T) {
	s := serve(t, newFake(1))
	ask := vhost.Header{Request: vhost.GetFeatures, Flags: vhost.FlagVersion}.Append(nil)
	full := false
	for range 100_000 {
		test.Must(t, s.conn.SetWriteDeadline(time.Now().Add(100*time.Millisecond)))
		if _, err := s.conn.Write(ask); errors.Is(err, os.ErrDeadlineExceeded) {
			full = true
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if !full {
		t.Error("100,000 questions went through without an answer being read")
	}
	must(t, "Serve", s.wait())
}

// FuzzSession feeds a session with messages taken from its input: each is a request, flags, the
// number and kinds of its descriptors, the length that its header claims relative to what follows,
// and the payload. For any input the Backend's rules hold and nothing leaks.
func FuzzSession(f *testing.F) {
	var seed []byte
	for _, m := range startSequence() {
		seed = append(seed, encode(m)...)
		f.Add(encode(m))
	}
	f.Add(seed)
	f.Fuzz(func(t *testing.T, in []byte) {
		fds := descriptors(t)
		s := serve(t, newFake(2))
		// A payload may hold many messages, whose answers exceed the socket's buffer, so they must
		// be read.
		read := make(chan struct{})
		go func() {
			_, _ = io.Copy(io.Discard, s.conn)
			close(read)
		}()
		defer func() { <-read }()
		for n := 0; len(in) > 0 && n < 64; n++ {
			var m sent
			m, in = decode(in)
			write(t, s.conn, m, fds, len(m.bytes))
		}
		s.wait()
	})
}

// encode writes m in FuzzSession's form.
func encode(m sent) []byte {
	h, err := vhost.DecodeHeader(m.bytes)
	if err != nil {
		return nil
	}
	payload := m.bytes[vhost.HeaderSize:]
	out := []byte{byte(h.Request), byte(h.Flags), byte(len(m.fds))}
	out = append(out, m.fds...)
	out = append(out, 128, byte(len(payload)), byte(len(payload)>>8))
	return append(out, payload...)
}

// decode takes a message from in; missing bytes are zero.
func decode(in []byte) (sent, []byte) {
	take := func(n int) []byte {
		b := make([]byte, n)
		k := copy(b, in)
		in = in[k:]
		return b
	}
	head := take(3)
	m := sent{fds: take(int(head[2] % 12))}
	skew := take(1)[0]
	size := take(2)
	payload := take((int(size[0]) | int(size[1])<<8) % 512)
	h := vhost.Header{
		Request: vhost.Request(head[0]), Flags: uint32(head[1]),
		Size: uint32(len(payload)) + uint32(skew) - 128,
	}
	m.bytes = append(h.Append(nil), payload...)
	return m, in
}
