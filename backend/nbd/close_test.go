package nbd

import "testing"

// A client that says goodbye hears the end of the connection, and may close its
// own end after that: the server has not gone before. It holds no place any more.
func TestFarewell(t *testing.T) {
	s, unix := start(t, Options{PerExport: 1, CloseTime: patience}, map[string]Disk{"x": noise(1 << 20)})
	tcp, err := s.Listen(Address{Network: "tcp", Host: "127.0.0.1"})
	must(t, err)
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
		must(t, c.Conn.(interface{ CloseWrite() error }).CloseWrite())
		eventually(t, "the client is gone", func() bool { return lingering() == 0 })
	}
	// Nor does the server's end wait for one that stays: see start.
	c := ready(t, unix, "x")
	c.give(command(cmdDisc, 0, 0, 0, 0))
	c.closed()
}
