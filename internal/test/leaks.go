package test

import (
	"net"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"
)

// NoLeaks fails the test if goroutines or file descriptors are left at its end that were not there
// when it was called.
func NoLeaks(t testing.TB) {
	t.Helper()
	// The first use of the network poller opens descriptors that remain.
	if l, err := net.Listen("unix", filepath.Join(t.TempDir(), "warm")); err == nil {
		l.Close()
	}
	goroutines, fds := runtime.NumGoroutine(), CountFDs(t)
	t.Cleanup(func() {
		var g, f int
		for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(interval) {
			if g, f = runtime.NumGoroutine(), CountFDs(t); g <= goroutines && f <= fds {
				return
			}
		}
		buf := make([]byte, 1<<16)
		t.Errorf("left behind: %d goroutines (were %d), %d fds (were %d)\n%s",
			g, goroutines, f, fds, buf[:runtime.Stack(buf, true)])
	})
}

// CountFDs returns the number of open file descriptors of this process.
func CountFDs(t testing.TB) int {
	t.Helper()
	d, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(d)
}
