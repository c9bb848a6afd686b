package nbd

import (
	"testing"

	"cowblk/internal/test"
)

// After NBD_CMD_DISC the client sees the end of the connection before the server closes it, and no
// longer counts as connected.
func TestAwaitClose(t *testing.T) {
	s, unix := start(t, Options{PerExport: 1, CloseTime: waitTimeout},
		map[string]Disk{"x": randomDisk(1 << 20)})
	tcp, err := s.Listen(Address{Network: "tcp", Host: "127.0.0.1"})
	test.Must(t, err)
	lingering := func() int {
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.clients)
	}
	for _, a := range []Address{unix, tcp} {
		c := ready(t, a, "x")
		c.give(command(cmdDisc, 0, 0, 0, 0))
		c.closed()
		if n := lingering(); n != 1 {
			t.Errorf("%s: %d connections before the client has closed its end; expected 1", a, n)
		}
		if n := s.Exports()[0].Clients; n != 0 {
			t.Errorf("%s: the export has %d clients; expected none", a, n)
		}
		test.Must(t, c.Conn.(interface{ CloseWrite() error }).CloseWrite())
		test.Eventually(t, "the client is gone", func() bool { return lingering() == 0 })
	}
	// Close of the server does not wait for such a client: see start.
	c := ready(t, unix, "x")
	c.give(command(cmdDisc, 0, 0, 0, 0))
	c.closed()
}
