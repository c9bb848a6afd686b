package qmp

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"cowblk/internal/test"
)

// waitTimeout bounds every wait in these tests. Reaching it is a failure.
const waitTimeout = 20 * time.Second

// thawTime is the deadline of Thaw in tests in which one attempt hangs.
const thawTime = 6 * time.Second

// freezeTime is the deadline of Freeze: short if a fault may block it, so that the test does not
// wait long; long if Freeze must succeed.
func freezeTime(mustSucceed bool) time.Duration {
	if mustSucceed {
		return waitTimeout
	}
	return 300 * time.Millisecond
}

func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

// peer is a fake program behind a UNIX socket.
type peer struct {
	t    *testing.T
	addr Address
	l    net.Listener
	wg   sync.WaitGroup

	mu    sync.Mutex
	conns map[net.Conn]bool
}

// listen starts a peer that serves one client at a time, as QEMU's sockets do.
func listen(t *testing.T, handle func(conn net.Conn, in *bufio.Reader)) *peer {
	t.Helper()
	test.NoLeaks(t)
	p := &peer{t: t, addr: Address{Path: filepath.Join(t.TempDir(), "s")},
		conns: make(map[net.Conn]bool)}
	p.start(handle)
	t.Cleanup(p.stop)
	return p
}

func (p *peer) start(handle func(conn net.Conn, in *bufio.Reader)) {
	l, err := net.Listen("unix", p.addr.Path)
	test.Must(p.t, err)
	p.l = l
	p.wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			p.mu.Lock()
			p.conns[conn] = true
			p.mu.Unlock()
			handle(conn, bufio.NewReader(conn))
			conn.Close()
			p.mu.Lock()
			delete(p.conns, conn)
			p.mu.Unlock()
		}
	})
}

// stop closes the socket and every connection.
func (p *peer) stop() {
	p.l.Close()
	p.mu.Lock()
	for c := range p.conns {
		c.Close()
	}
	p.mu.Unlock()
	p.wg.Wait()
}

func say(conn net.Conn, format string, args ...any) {
	fmt.Fprintf(conn, format+"\r\n", args...)
}
