package backend

import (
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cowblk/backend/backendtest"
	"cowblk/cow/cowtest/faultfs"
	"cowblk/cow/vfs"
	"cowblk/internal/test"
	"cowblk/vhost/frontend"
)

// Of requests that fail within ten seconds, the first is logged and reported, the others are not.
func TestErrorsAreLoggedOnceInAWhile(t *testing.T) {
	x := faultfs.Over(vfs.OS{}, nil)
	var log test.Log
	var events atomic.Int32
	s := serveOn(t, DeviceOptions{}, x, func(v *served) {
		v.dev.log = log.Logger()
		v.dev.Observe(Observer{IOError: func(IOErrorEvent) { events.Add(1) }})
	})
	x.OnCall(func(c faultfs.Call) error {
		if c.Op == "write" && strings.HasSuffix(c.Name, "/data") {
			return unix.EIO
		}
		return nil
	})
	f := s.dial(frontend.Options{})
	failing := func() {
		t.Helper()
		for range 20 {
			if backendtest.Write(f.Driver(0), 1, 0)() == nil {
				t.Fatal("a write succeeded")
			}
		}
	}
	failing()
	test.Equal(t, events.Load(), 1, "events for errors of one moment")
	s.dev.ioErrors.AllowN(time.Now().Add(errorLogInterval), 0) // that time passes
	failing()
	test.Equal(t, events.Load(), 2, "events after", errorLogInterval)
	f.Close()
	s.stop()
	if n := log.Count(slog.LevelError); n != 2 {
		t.Errorf("%d lines:\n%s", n, &log)
	}
}
