package vhost_test

import (
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"cowblk/internal/test"
	"cowblk/vhost"
	"cowblk/vhost/frontend"
	"cowblk/vhost/guest"
)

func (l *lockedBuffer) text() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// await waits for a log line that contains text.
func (l *lockedBuffer) await(t *testing.T, text string) {
	t.Helper()
	test.Eventually(t, text, func() bool { return strings.Contains(l.text(), text) })
}

const adviceText = "memory-backend-memfd,id=mem,size=SIZE,share=on"

// rawSession is a session with a scripted front-end.
func rawSession(t *testing.T, be *fake) (*served, *vhost.Conn, *lockedBuffer) {
	t.Helper()
	log := &lockedBuffer{}
	s := serveWith(t, be, vhost.Options{Log: slog.New(slog.NewTextHandler(log, nil))})
	return s, vhost.NewConn(s.conn), log
}

// startRing sends all that a ring needs, at the given addresses.
func startRing(t *testing.T, c *vhost.Conn, desc, avail, used uint64) {
	t.Helper()
	kick, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	must(t, "eventfd", err)
	defer unix.Close(kick)
	send := func(r vhost.Request, payload []byte, fds ...int) {
		t.Helper()
		must(t, r.String(), c.WriteMessage(vhost.Header{Request: r, Flags: vhost.FlagVersion}, payload, fds...))
	}
	send(vhost.SetFeatures, u64(frontend.FeatureVersion1)) // without protocol features rings are enabled
	send(vhost.SetVringNum, state(0, 8))
	send(vhost.SetVringBase, state(0, 0))
	send(vhost.SetVringAddr, addr(0, 0, desc, avail, used))
	send(vhost.SetVringKick, u64(0), kick)
}

// A ring without memory is reported, whether the front-end stays or disconnects; one that gets its
// memory later is not.
func TestRingWithoutMemory(t *testing.T) {
	s, c, log := rawSession(t, newFake(1))
	startRing(t, c, 0x1000, 0x2000, 0x3000)
	log.await(t, "the front-end shares no memory")
	if !strings.Contains(log.text(), adviceText) || !strings.Contains(log.text(), "access mode='shared'") {
		t.Errorf("no advice: %s", log.text())
	}
	must(t, "session", s.wait())
	if n := strings.Count(log.text(), "shares no memory"); n != 1 {
		t.Errorf("reported %d times", n)
	}

	s, c, log = rawSession(t, newFake(1))
	startRing(t, c, 0x1000, 0x2000, 0x3000)
	test.Eventually(t, "it has read the features at least", func() bool { return s.be.take() != "" })
	must(t, "barrier", c.WriteMessage(vhost.Header{Request: vhost.GetFeatures, Flags: vhost.FlagVersion}, nil))
	m, err := c.ReadMessage()
	must(t, "barrier", err)
	m.CloseFDs()
	must(t, "session", s.wait())
	if !strings.Contains(log.text(), "shares no memory") {
		t.Errorf("a front-end that went at once: %s", log.text())
	}
}

func TestRingBeforeMemory(t *testing.T) {
	s, c, log := rawSession(t, newFake(1))
	startRing(t, c, 0x1000, 0x2000, 0x3000)
	fd := memory(t, 1<<20)
	must(t, "memory", c.WriteMessage(vhost.Header{Request: vhost.SetMemTable, Flags: vhost.FlagVersion}, table(reg(0, 1<<20, 0, 0)), fd))
	unix.Close(fd)
	test.Eventually(t, "the ring starts", func() bool { return strings.Contains(s.be.take(), "start") })
	// The end of the session reports missing memory before the time is over.
	must(t, "session", s.wait())
	if strings.Contains(log.text(), "memory") {
		t.Error(log.text())
	}
}

// The error of a ring outside the shared memory contains advice.
func TestRingOutsideMemory(t *testing.T) {
	be := newFake(1)
	be.refuse["StartQueue"] = fmt.Errorf("ring: %w", guest.ErrOutside)
	s, c, _ := rawSession(t, be)
	fd := memory(t, 1<<20)
	must(t, "memory", c.WriteMessage(vhost.Header{Request: vhost.SetMemTable, Flags: vhost.FlagVersion}, table(reg(0, 1<<20, 0, 0)), fd))
	unix.Close(fd)
	startRing(t, c, 1<<30, 1<<30, 1<<30)
	if err := <-s.end; err == nil || !strings.Contains(err.Error(), adviceText) {
		t.Error(err)
	} else {
		s.end <- err
	}
	_ = s.wait()
}

// memory returns a memfd of n bytes that were never accessed.
func memory(t *testing.T, n int64) int {
	t.Helper()
	fd, err := unix.MemfdCreate("guest", unix.MFD_CLOEXEC)
	must(t, "memfd", err)
	must(t, "size", unix.Ftruncate(fd, n))
	return fd
}
