package backendtest

import (
	"errors"
	"log/slog"
	"net"
	"sync"
	"testing"

	"cowblk/internal/test"
)

// Device serves front-ends: *backend.Device, which this package cannot import.
type Device interface {
	Serve(conn *net.UnixConn, log *slog.Logger) error
	Drain()
}

// Serve serves front-ends on the socket at path, one after another, until stop. Stop completes all
// requests in flight and disconnects the front-end; it may be called again.
func Serve(t testing.TB, path string, dev Device, log *slog.Logger) (stop func()) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	test.Must(t, err)
	var mu sync.Mutex
	var conn *net.UnixConn // the one that is served
	ended := make(chan error, 1)
	go func() {
		for {
			c, err := l.AcceptUnix()
			if err != nil {
				ended <- err
				return
			}
			mu.Lock()
			conn = c
			mu.Unlock()
			_ = dev.Serve(c, log) // the test sees it from the other end
		}
	}()
	return sync.OnceFunc(func() {
		l.Close()
		dev.Drain()
		mu.Lock()
		if conn != nil {
			conn.Close()
		}
		mu.Unlock()
		if err := <-ended; !errors.Is(err, net.ErrClosed) {
			t.Errorf("accept: %v", err)
		}
	})
}
