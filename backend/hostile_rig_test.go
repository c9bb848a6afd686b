package backend

import (
	"context"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cowblk/backend/backendtest"
	"cowblk/cow"
	"cowblk/eventfd"
	"cowblk/internal/test"
	"cowblk/vhost"
	"cowblk/vhost/virtq/virtqtest"
)

// patience is how long a hostile test waits for what must come; far longer than it takes on a busy
// machine.
const patience = 20 * time.Second

// target is a small disk, a base of random content with a head on top, and the device in front of
// it.
type target struct {
	base []byte
	disk *cow.Disk
	dev  *Device
	log  *logCount
	data string // the head's data file
}

func newTarget(t testing.TB, size int64, o DeviceOptions) *target {
	t.Helper()
	return openTarget(t, size, o, cow.Options{LoseUnflushed: true})
}

func openTarget(t testing.TB, size int64, o DeviceOptions, how cow.Options) *target {
	t.Helper()
	d := backendtest.OpenDisk(t, size, how)
	x := &target{base: d.Base, disk: d.Disk, log: &logCount{}, data: filepath.Join(d.Dir, "data")}
	var err error
	o.Name, o.Log = "target", slog.New(x.log)
	x.dev, err = NewDevice(x.disk, o)
	test.Must(t, err)
	return x
}

// logCount counts what a person's log would get, lines of Info and above, and keeps the last.
type logCount struct {
	lines, bytes atomic.Int64
	last         atomic.Value // string
}

func (c *logCount) Enabled(_ context.Context, l slog.Level) bool { return l >= slog.LevelInfo }
func (c *logCount) WithAttrs([]slog.Attr) slog.Handler           { return c }
func (c *logCount) WithGroup(string) slog.Handler                { return c }
func (c *logCount) Handle(_ context.Context, r slog.Record) error {
	line := r.Message
	r.Attrs(func(a slog.Attr) bool { line += " " + a.String(); return true })
	c.lines.Add(1)
	c.bytes.Add(int64(len(line)))
	c.last.Store(line)
	return nil
}

func (c *logCount) text() string {
	s, _ := c.last.Load().(string)
	return s
}

// Guest memory of an attacker: two adjacent regions with a border between them, nothing above or
// below.
const (
	atkBase   = 0x10000
	atkRegion = 0x20000
	atkBorder = atkBase + atkRegion
	atkEnd    = atkBorder + atkRegion
	atkNum    = 16               // descriptors of a ring
	atkMeta   = atkBase + 0x4000 // headers
	atkStatus = atkBase + 0x8000 // status bytes
	atkTable  = atkBase + 0xc000 // indirect tables
	atkData   = atkBorder - 0x8000
)

// attacker is a front-end and driver that does what it is told, right or wrong, to a session over a
// socket pair.
type attacker struct {
	t    testing.TB
	to   *target
	mem  *virtqtest.Memory
	ring *virtqtest.Ring
	sock int // a blocking socket
	end  chan error

	kick, call, err int // eventfds
	served          bool
}

// newAttacker starts a session. Nothing has been said yet.
func newAttacker(t testing.TB, to *target) *attacker {
	t.Helper()
	a := &attacker{t: t, to: to, end: make(chan error, 1)}
	var err error
	a.mem, err = virtqtest.NewMemory(virtqtest.Layout(atkBase, atkRegion, atkRegion)...)
	test.Must(t, err)
	a.ring, err = virtqtest.NewRing(a.mem, atkNum, atkBase)
	test.Must(t, err)
	for _, p := range []*int{&a.kick, &a.call, &a.err} {
		*p, err = eventfd.New()
		test.Must(t, err)
	}
	a.connect()
	t.Cleanup(func() {
		a.leave()
		test.Must(t, a.mem.Close())
		for _, fd := range []int{a.kick, a.call, a.err} {
			unix.Close(fd)
		}
	})
	return a
}

// connect starts a session on a new connection.
func (a *attacker) connect() {
	a.t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	test.Must(a.t, err)
	conn := unixConn(a.t, pair[1])
	limit := unix.NsecToTimeval(int64(patience))
	test.Must(a.t, unix.SetsockoptTimeval(pair[0], unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit))
	test.Must(a.t, unix.SetsockoptTimeval(pair[0], unix.SOL_SOCKET, unix.SO_SNDTIMEO, &limit))
	a.sock, a.served = pair[0], true
	to := a.to
	go func() { a.end <- serveSession(conn, to) }()
}

// serveSession is one front-end's session on a target.
func serveSession(conn *net.UnixConn, to *target) error {
	return vhost.Serve(conn, to.dev, vhost.Options{Log: slog.New(to.log)})
}

// unixConn takes over a socket.
func unixConn(t testing.TB, fd int) *net.UnixConn {
	t.Helper()
	f := os.NewFile(uintptr(fd), "socket")
	defer f.Close()
	conn, err := net.FileConn(f)
	test.Must(t, err)
	return conn.(*net.UnixConn)
}

// leave disconnects when all that was sent has been dealt with, and returns what Serve returned. It
// may be called again.
func (a *attacker) leave() error {
	if !a.served {
		return nil
	}
	a.served = false
	// Not a close: an answer to a closed connection would end the session.
	_ = unix.Shutdown(a.sock, unix.SHUT_WR)
	defer unix.Close(a.sock)
	timeout := time.NewTimer(patience)
	defer timeout.Stop()
	var sink [4096]byte
	for {
		select {
		case err := <-a.end:
			return err
		case <-timeout.C:
			a.t.Fatal("the session did not end after its front-end had gone")
		case <-time.After(time.Second):
			_, _, _ = unix.Recvfrom(a.sock, sink[:], unix.MSG_DONTWAIT)
		}
	}
}

// send sends a message with its correct framing; errors of a connection that the other side has
// closed do not count.
func (a *attacker) send(r vhost.Request, flags uint32, payload []byte, fds ...int) {
	h := vhost.Header{Request: r, Flags: vhost.FlagVersion | flags, Size: uint32(len(payload))}
	a.raw(append(h.Append(nil), payload...), fds...)
}

func (a *attacker) raw(b []byte, fds ...int) {
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	_ = unix.Sendmsg(a.sock, b, oob, nil, unix.MSG_NOSIGNAL)
}

// receive returns the next message's payload; false if the connection ended.
func (a *attacker) receive() ([]byte, bool) {
	var head [vhost.HeaderSize]byte
	if !a.fill(head[:]) {
		return nil, false
	}
	h, err := vhost.DecodeHeader(head[:])
	test.Must(a.t, err)
	p := make([]byte, h.Size)
	return p, a.fill(p)
}

func (a *attacker) fill(p []byte) bool {
	for len(p) > 0 {
		n, err := unix.Read(a.sock, p)
		if err == unix.EINTR {
			continue
		}
		if err == unix.EAGAIN {
			a.t.Fatal("the session does not answer")
		}
		if err != nil || n == 0 {
			return false
		}
		p = p[n:]
	}
	return true
}

// ask sends a message and returns the answer's u64.
func (a *attacker) ask(r vhost.Request, payload []byte, fds ...int) uint64 {
	a.t.Helper()
	a.send(r, vhost.FlagNeedReply, payload, fds...)
	p, ok := a.receive()
	if !ok || len(p) < 8 {
		a.t.Fatalf("%v: no answer; session: %v", r, a.leave())
	}
	v, err := vhost.DecodeU64(p[:8])
	test.Must(a.t, err)
	return v
}

// tell is ask for a message that must succeed.
func (a *attacker) tell(r vhost.Request, payload []byte, fds ...int) {
	a.t.Helper()
	if v := a.ask(r, payload, fds...); v != 0 {
		a.t.Fatalf("%v: refused", r)
	}
}

func u64(v uint64) []byte { return vhost.AppendU64(nil, v) }

func vringState(i, num uint32) []byte { return vhost.VringState{Index: i, Num: num}.Append(nil) }

// negotiate goes as far as sharing memory.
func (a *attacker) negotiate() {
	a.t.Helper()
	a.send(vhost.SetProtocolFeatures, 0, u64(vhost.ProtocolFeatures))
	a.tell(vhost.SetFeatures, u64(a.to.dev.Features()|vhost.FeatureProtocolFeatures))
	a.tell(vhost.SetMemTable, vhost.AppendMemTable(nil, a.mem.Regions()), a.mem.FDs()...)
}

func (a *attacker) address(i uint32, r *virtqtest.Ring) []byte {
	return vhost.VringAddr{Index: i, Desc: a.mem.User(r.Desc), Avail: a.mem.User(r.Avail),
		Used: a.mem.User(r.Used)}.Append(nil)
}

// setRing announces ring 0 and leaves only its kick to be sent.
func (a *attacker) setRing() {
	a.t.Helper()
	a.tell(vhost.SetVringNum, vringState(0, uint32(a.ring.Num)))
	a.tell(vhost.SetVringBase, vringState(0, uint32(a.ring.AvailIdx())))
	a.tell(vhost.SetVringAddr, a.address(0, a.ring))
	a.tell(vhost.SetVringCall, u64(0), a.call)
	a.tell(vhost.SetVringErr, u64(0), a.err)
	a.tell(vhost.SetVringEnable, vringState(0, 1))
}

// run brings a new session to the point where ring 0 runs.
func (a *attacker) run() {
	a.t.Helper()
	a.negotiate()
	a.setRing()
	a.tell(vhost.SetVringKick, u64(0), a.kick)
}

// restart makes a new start of ring 0, broken or not, from empty rings.
func (a *attacker) restart() {
	a.t.Helper()
	a.send(vhost.GetVringBase, 0, vringState(0, 0))
	if _, ok := a.receive(); !ok {
		a.t.Fatalf("GET_VRING_BASE: no answer; session: %v", a.leave())
	}
	drain(a.err)
	drain(a.call)
	a.ring.Clear()
	a.tell(vhost.SetVringBase, vringState(0, 0))
	a.tell(vhost.SetVringKick, u64(0), a.kick)
}
