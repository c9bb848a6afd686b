package backend

import (
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"cowblk/backend/backendtest"
	"cowblk/eventfd"
	"cowblk/internal/test"
	"cowblk/vhost"
	"cowblk/vhost/frontend"
)

// A driver that kicks and never fills its ring probably writes to other memory than the one that
// was passed: this is logged. A driver whose request arrives with the kick causes no log line.
func TestKicksWithoutRequests(t *testing.T) {
	var log test.Log
	s := serve(t, DeviceOptions{})
	s.stop()
	s.dev.Reopen(s.disk)
	s.stop = backendtest.Serve(t, s.socket, s.dev, log.Logger())
	t.Cleanup(s.stop)
	kick, err := eventfd.New()
	test.Must(t, err)
	defer unix.Close(kick)
	f := s.dial(frontend.Options{})
	test.Must(t, f.Send(vhost.SetVringKick, vhost.FlagVersion, vhost.AppendU64(nil, 0), kick))
	test.Must(t, f.Barrier())
	test.Eventually(t, "the warning", func() bool {
		_ = eventfd.Signal(kick)
		return slices.Contains(log.Values("advice"), vhost.MemoryAdvice)
	}, &log)
	test.Must(t, f.Close())

	f = s.dial(frontend.Options{})
	test.Must(t, test.Err(f.Driver(0).ReadAt(make([]byte, 512), 0)))
	test.Must(t, f.Send(vhost.SetVringKick, vhost.FlagVersion, vhost.AppendU64(nil, 0), kick))
	test.Must(t, f.Barrier())
	test.Eventually(t, "the kick is noticed", func() bool {
		_ = eventfd.Signal(kick)
		return !s.dev.kicks.armed.Load()
	})
	s.dev.kicks.mu.Lock()
	check := s.dev.kicks.check
	s.dev.kicks.mu.Unlock()
	check()
	test.Must(t, f.Close())
	if n := len(log.Values("advice")); n != 1 {
		t.Errorf("logged %d times", n)
	}
}
