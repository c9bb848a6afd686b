package vhost_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"cowblk/internal/test"
	"cowblk/vhost"
	"cowblk/vhost/frontend"
	"cowblk/vhost/guest"
)

// rawSession is a session with a scripted front-end.
func rawSession(t *testing.T, be *fake) (*served, *vhost.Conn, *test.Log) {
	t.Helper()
	log := &test.Log{}
	s := serveWith(t, be, vhost.Options{Log: log.Logger()})
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
		must(t, r.String(), c.WriteMessage(vhost.Header{Request: r, Flags: vhost.FlagVersion},
			payload, fds...))
	}
	// without protocol features rings are enabled
	send(vhost.SetFeatures, u64(frontend.FeatureVersion1))
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
	test.Eventually(t, "advice",
		func() bool { return slices.Contains(log.Values("advice"), vhost.MemoryAdvice) }, log)
	must(t, "session", s.wait())
	if n := len(log.Values("advice")); n != 1 {
		t.Errorf("reported %d times", n)
	}

	s, c, log = rawSession(t, newFake(1))
	startRing(t, c, 0x1000, 0x2000, 0x3000)
	test.Eventually(t, "it has read the features at least",
		func() bool { return s.be.take() != "" })
	must(t, "barrier", c.WriteMessage(vhost.Header{Request: vhost.GetFeatures,
		Flags: vhost.FlagVersion}, nil))
	m, err := c.ReadMessage()
	must(t, "barrier", err)
	m.CloseFDs()
	must(t, "session", s.wait())
	if log.Values("advice") == nil {
		t.Errorf("a front-end that went at once: %s", log)
	}
}

func TestRingBeforeMemory(t *testing.T) {
	s, c, log := rawSession(t, newFake(1))
	startRing(t, c, 0x1000, 0x2000, 0x3000)
	fd := memory(t, 1<<20)
	must(t, "memory", c.WriteMessage(vhost.Header{Request: vhost.SetMemTable,
		Flags: vhost.FlagVersion}, table(reg(0, 1<<20, 0, 0)), fd))
	unix.Close(fd)
	test.Eventually(t, "the ring starts",
		func() bool { return strings.Contains(s.be.take(), "start") })
	// The end of the session reports missing memory before the time is over.
	must(t, "session", s.wait())
	if log.Values("advice") != nil {
		t.Error(log)
	}
}

// The error of a ring outside the shared memory contains advice.
func TestRingOutsideMemory(t *testing.T) {
	be := newFake(1)
	be.refuse["StartQueue"] = fmt.Errorf("ring: %w", guest.ErrOutside)
	s, c, _ := rawSession(t, be)
	fd := memory(t, 1<<20)
	must(t, "memory", c.WriteMessage(vhost.Header{Request: vhost.SetMemTable,
		Flags: vhost.FlagVersion}, table(reg(0, 1<<20, 0, 0)), fd))
	unix.Close(fd)
	startRing(t, c, 1<<30, 1<<30, 1<<30)
	err := <-s.end
	test.Texts(t, "memory.texts")(t, "ring outside the memory", err)
	s.end <- err
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
