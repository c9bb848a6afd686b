package nbd

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"cowblk/backend/loglimit"
	"cowblk/internal/test"
)

// ends reports whether the server closes the connection before the test's own deadline.
func ends(c net.Conn) bool {
	_, err := io.Copy(io.Discard, c)
	var timeout net.Error
	return !(errors.As(err, &timeout) && timeout.Timeout())
}

// inBubble runs f beside a server with the export x, in a bubble of testing/synctest, where time
// passes at once. connect returns a new client.
func inBubble(t *testing.T, o Options, d Disk,
	f func(t *testing.T, s *Server, connect func() *script)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		o.Log = quiet
		s := New(o)
		test.Must(t, s.AddExport("x", d))
		f(t, s, func() *script {
			c, theirs := net.Pipe()
			s.admit(theirs, Address{Network: "unix"})
			test.Must(t, c.SetDeadline(time.Now().Add(time.Hour)))
			return &script{c, t}
		})
		test.Must(t, s.Close())
	})
}

func TestHandshakeTime(t *testing.T) {
	inBubble(t, Options{HandshakeTime: time.Second}, randomDisk(1<<20),
		func(t *testing.T, _ *Server, connect func() *script) {
			silent, slow, c := connect(), connect(), connect()
			slow.greet()
			go func() {
				for _, b := range option(optGo, choice("x")) {
					slow.Write([]byte{b})
					time.Sleep(100 * time.Millisecond)
				}
			}()
			c.greet()
			c.choose("x")
			if !ends(silent) || !ends(slow) {
				t.Error("half-open connections stay")
			}
			// longer than HandshakeTime, which does not limit the connection
			time.Sleep(2 * time.Second)
			c.give(command(cmdRead, 0, 1, 0, 512))
			test.Equal(t, c.reply(1), 0, "error")
			c.take(512)
		})
}

func TestIdleTime(t *testing.T) {
	inBubble(t, Options{IdleTime: time.Minute}, randomDisk(512),
		func(t *testing.T, _ *Server, connect func() *script) {
			c, began := connect(), time.Now()
			c.greet()
			c.choose("x")
			if !ends(c) || time.Since(began) != time.Minute {
				t.Errorf("an idle connection stays for %s", time.Since(began))
			}
		})
}

func TestStallTime(t *testing.T) {
	inBubble(t, Options{StallTime: time.Second}, randomDisk(maxRequest),
		func(t *testing.T, _ *Server, connect func() *script) {
			half, payload, deaf, c := connect(), connect(), connect(), connect()
			for _, c := range []*script{half, payload, deaf, c} {
				c.greet()
				c.choose("x")
			}
			half.give(command(cmdRead, 0, 1, 0, 512)[:requestLen-1])
			payload.give(command(cmdWrite, 0, 1, 0, 512))
			if !ends(half) || !ends(payload) {
				t.Error("half-sent requests stay")
			}
			deaf.give(command(cmdRead, 0, 1, 0, maxRequest)) // and does not read the reply
			time.Sleep(2 * time.Second)
			if n, _ := io.Copy(io.Discard, deaf); n >= maxRequest {
				t.Errorf("%d bytes came", n)
			}
			c.give(command(cmdRead, 0, 1, 0, 512))
			test.Equal(t, c.reply(1), 0, "error")
			c.take(512)
		})
}

// While other clients are stuck in every state, a client is served.
func TestSlowHarmsNobody(t *testing.T) {
	d := randomDisk(64 << 20)
	_, a := start(t, Options{}, map[string]Disk{"x": d})
	for range 5 {
		ready(t, a, "x").give(command(cmdRead, 0, 1, 0, maxRequest))
		greeted(t, a).give(option(optGo, choice("x"))[:5])
		dial(t, a)
	}
	checkServes(t, a, "x", d)
}

func TestPerExport(t *testing.T) {
	d := randomDisk(1 << 20)
	s, a := start(t, Options{PerExport: 2}, map[string]Disk{"x": d, "y": d})
	first, _ := ready(t, a, "x"), ready(t, a, "x")
	c := greeted(t, a)
	c.give(option(optGo, choice("x")))
	if kind, text := c.optionReply(optGo); kind != repErrPolicy || !strings.Contains(string(text),
		"too many connections") {
		t.Errorf("third connection: %#x %q", kind, text)
	}
	checkServes(t, a, "y", d)
	first.Close()
	test.Eventually(t, "a place is free", func() bool { return s.Exports()[0].Clients == 1 })
	checkServes(t, a, "x", d)
}

func TestFlood(t *testing.T) {
	d := randomDisk(1 << 20)
	s, a := start(t, Options{Connections: 8, PerExport: 100}, map[string]Disk{"x": d})
	// Half-open connections are disconnected for clients that negotiate.
	for i := range 200 {
		dial(t, a)
		test.Eventually(t, "the client has come and another one gone", func() bool {
			s.mu.Lock()
			defer s.mu.Unlock()
			return s.accepted == uint64(i+1) && len(s.clients) <= 8
		})
	}
	checkServes(t, a, "x", d)
	// Established clients are not disconnected.
	var talking []*script
	for range 8 {
		talking = append(talking, ready(t, a, "x"))
	}
	for range 20 {
		if !ends(dial(t, a)) {
			t.Error("one connection too many")
		}
	}
	for _, c := range talking {
		c.give(command(cmdRead, 0, 1, 0, 512))
		test.Equal(t, c.reply(1), 0, "error")
		c.take(512)
	}
	test.Eventually(t, "only the established clients are left", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.clients) == 8
	})
}

// RemoveExport waits for a read, however long it takes, and disconnects only the clients of its
// export.
func TestRemoveExport(t *testing.T) {
	d := randomDisk(1 << 20)
	d.wait, d.into = make(chan struct{}), make(chan struct{}, 1)
	s, a := start(t, Options{}, map[string]Disk{"x": d, "y": randomDisk(512)})
	other, reading := ready(t, a, "y"), ready(t, a, "x")
	reading.give(command(cmdRead, 0, 1, 0, 512))
	<-d.into
	removed := test.Go(func() error { return s.RemoveExport("x") })
	test.Eventually(t, "the export is not offered", func() bool { return len(s.Exports()) == 1 })
	close(d.wait)
	removed.Must(t)
	if !ends(reading) {
		t.Error("the client stays")
	}
	other.give(command(cmdRead, 0, 1, 0, 512))
	test.Equal(t, other.reply(1), 0, "the other export: error")
	test.ErrorIs(t, s.RemoveExport("x"), ErrNotFound, "again")
	test.Must(t, s.AddExport("x", randomDisk(512)))
	ready(t, a, "x")
}

func TestRemoveExportWaitsForReads(t *testing.T) {
	d := randomDisk(1 << 20)
	inBubble(t, Options{}, d, func(t *testing.T, s *Server, connect func() *script) {
		d.wait, d.into = make(chan struct{}), make(chan struct{}, 1) // of the bubble
		c := connect()
		c.greet()
		c.choose("x")
		c.give(command(cmdRead, 0, 1, 0, 512))
		<-d.into
		removed := test.Go(func() error { return s.RemoveExport("x") })
		if removed.Ends() {
			t.Error("removed while the disk is being read")
		}
		close(d.wait)
		test.Must(t, removed.Wait())
	})
}

func TestAddExportErrors(t *testing.T) {
	s, _ := start(t, Options{}, map[string]Disk{"x": randomDisk(512)})
	for _, tt := range []struct {
		name string
		disk Disk
		want error
	}{
		{"x", randomDisk(512), ErrExists},
		{"a\x00b", randomDisk(512), ErrName},
		{"a\xff", randomDisk(512), ErrName},
		{strings.Repeat("n", maxName+1), randomDisk(512), ErrName},
		{"odd", randomDisk(513), ErrSize},
		{"empty", &memDisk{}, ErrSize},
	} {
		test.ErrorIs(t, s.AddExport(tt.name, tt.disk), tt.want, tt.name)
	}
	test.Must(t, s.Close())
	test.ErrorIs(t, s.AddExport("z", randomDisk(512)), ErrClosed, "after Close")
	test.ErrorIs(t, test.Err(s.Listen(Address{Network: "tcp", Host: "127.0.0.1"})), ErrClosed,
		"Listen after Close")
}

// Close ends clients in every state; start checks that nothing is left.
func TestCloseUnderLoad(t *testing.T) {
	d := randomDisk(8 << 20)
	s, a := start(t, Options{}, map[string]Disk{"x": d})
	tcp, err := s.Listen(Address{Network: "tcp", Host: "127.0.0.1"})
	test.Must(t, err)
	var wg sync.WaitGroup
	for i := range 12 {
		at := []Address{a, tcp}[i%2]
		switch i % 3 {
		case 0:
			dial(t, at)
		case 1:
			ready(t, at, "x").give(command(cmdRead, 0, 1, 0, 8<<20))
		case 2:
			c := ready(t, at, "x")
			wg.Go(func() {
				for {
					if _, err := c.Write(command(cmdRead, 0, 1, 0, 1<<20)); err != nil {
						return
					}
					if _, err := io.CopyN(io.Discard, c, 1<<20+replyLen); err != nil {
						return
					}
				}
			})
		}
	}
	test.Must(t, s.Close())
	wg.Wait()
	test.Must(t, s.Close())
}

// Many bad clients do not produce as many log lines.
func TestLogIsLimited(t *testing.T) {
	var log bytes.Buffer
	s, a := start(t, Options{Log: slog.New(slog.NewTextHandler(&log, nil))},
		map[string]Disk{"x": randomDisk(512)})
	for range 100 {
		c := greeted(t, a)
		c.give(make([]byte, optionHeaderLen))
		c.closed()
	}
	test.Must(t, s.Close())
	if n := strings.Count(log.String(), "\n"); n < 1 || n > 2*loglimit.Burst+1 {
		t.Errorf("%d lines:\n%s", n, log.String())
	}
}

func TestExports(t *testing.T) {
	s, a := start(t, Options{}, map[string]Disk{"vm1@t": randomDisk(512),
		"vm1@s": randomDisk(1024)})
	ready(t, a, "vm1@t")
	test.Eventually(t, "the client is counted", func() bool { return s.Exports()[1].Total == 1 })
	want := fmt.Sprintf("[{vm1@s 1024 0 0 [%s]} {vm1@t 512 1 1 [%s]}]", a.URI("vm1@s"),
		a.URI("vm1@t"))
	if got := fmt.Sprint(s.Exports()); got != want {
		t.Errorf("%s\nexpected %s", got, want)
	}
}
