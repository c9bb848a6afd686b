package control

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"cowblk/internal/test"
)

// alive checks that another client is served normally.
func alive(t *testing.T, path string) {
	t.Helper()
	c := dialScript(t, path).ready()
	c.send(`{"execute":"echo","arguments":{"a":1}}`)
	c.want(`{"return":{"a":1}}`)
	c.conn.Close()
}

// A client that reads no events is disconnected; one that reads them gets all.
func TestSlowClient(t *testing.T) {
	s, path := start(t, Options{MaxQueue: 1}, map[string]Handler{"echo": echo})
	slow := dialScript(t, path).ready()
	good := dialScript(t, path).ready()
	test.Eventually(t, "both take events", func() bool { return listening(s) == 2 })
	pad := strings.Repeat("x", 1000)
	sent, gone := 0, false
	for ; !gone && sent < 100_000; sent++ {
		s.Emit("COW_TEST", map[string]any{"n": sent, "pad": pad})
		if l := good.line(); !strings.Contains(l, fmt.Sprintf(`"n":%d,`, sent)) {
			t.Fatalf("event %d: got %.60s", sent, l)
		}
		gone = listening(s) == 1
	}
	if !gone {
		t.Fatalf("the slow client is still connected after %d events", sent)
	}
	if limit := int64(4*maxText + 2<<20); int64(sent*1000) > limit {
		t.Errorf("closed after %d events of 1,000 bytes, expected less than %d bytes", sent, limit)
	}
	// It receives only what was in the socket's buffer.
	if n, err := io.Copy(io.Discard, slow.in); err != nil && !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("slow client: %d bytes, then %v", n, err)
	}
	alive(t, path)
}

// listening counts the clients that receive events.
func listening(s *Server) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for c := range s.sessions {
		if c.events {
			n++
		}
	}
	return n
}

// A client that sends commands and reads no replies is throttled, disconnected after a time, and
// delays nobody.
func TestCommandFlood(t *testing.T) {
	s, path := start(t, Options{MaxQueue: 1, WriteTimeout: 300 * time.Millisecond},
		map[string]Handler{"echo": echo})
	c := dialScript(t, path)
	text := []byte(`{"execute":"qmp_capabilities"}` + strings.Repeat(
		`{"execute":"echo","arguments":{"pad":"0123456789"}}`, 1000))
	var err error
	for n := 0; err == nil; n += len(text) {
		if n > 64<<20 {
			t.Fatal("64 MiB of commands were taken and not one reply read")
		}
		_, err = c.conn.Write(text)
	}
	if !errors.Is(err, syscall.EPIPE) && !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("flood ended with %v", err)
	}
	test.Eventually(t, "the flood's session is gone",
		func() bool { s.mu.Lock(); defer s.mu.Unlock(); return len(s.sessions) == 0 })
	alive(t, path)
}

// Many commands at once from a client that reads are all answered.
func TestPipelined(t *testing.T) {
	_, path := start(t, Options{MaxQueue: 1}, map[string]Handler{"echo": echo})
	c := dialScript(t, path).ready()
	const n = 20_000
	go func() {
		for i := range n {
			if _, err := fmt.Fprintf(c.conn, `{"execute":"echo","id":%d}`, i); err != nil {
				return
			}
		}
	}()
	for i := range n {
		c.want(fmt.Sprintf(`{"return":{},"id":%d}`, i))
	}
}

func TestHostileInput(t *testing.T) {
	noise := make([]byte, 1<<20)
	r := rand.NewChaCha8([32]byte{1})
	r.Read(noise)
	for name, tc := range map[string]struct {
		input string
		reply string // part of the first reply; empty: none is expected
		ends  bool   // the server closes the connection
	}{
		"binary":       {input: string(noise)},
		"zeros":        {input: strings.Repeat("\x00", 1<<20), reply: "expected an object"},
		"flush bytes":  {input: strings.Repeat("\xff", 1<<16)},
		"half line":    {input: `{"execute":"ec`},
		"half escape":  {input: `{"execute":"ec\`},
		"deep arrays":  {input: strings.Repeat("[", 1<<20), reply: "too deep"},
		"deep objects": {input: strings.Repeat(`{"a":`, 1<<18), reply: "too deep"},
		"endless string": {input: `{"execute":"` + strings.Repeat("x", 1<<20),
			reply: "longer than", ends: true},
		"endless blanks": {input: "{" + strings.Repeat(" ", 1<<20), reply: "longer than",
			ends: true},
		"garbage lines":  {input: strings.Repeat("x\n", 1<<10), reply: "expected an object"},
		"wrong brackets": {input: `{"execute":]`, reply: "JSON parse error"},
		"bad utf8":       {input: "{\"execute\":\"\xc3\x28\"}", reply: "CommandNotFound"},
		"long id": {input: `{"execute":"echo","id":"` + strings.Repeat("i", maxText-100) +
			`"}`, reply: "CommandNotFound"},
		"long name": {input: `{"execute":"` + strings.Repeat("n", maxText-100) + `"}`,
			reply: "CommandNotFound"},
		"duplicate names": {input: `{"execute":"a","execute":"qmp_capabilities"}`,
			reply: `{"return":{}}`},
	} {
		t.Run(name, func(t *testing.T) {
			s, path := start(t, Options{}, map[string]Handler{"echo": echo})
			c := dialScript(t, path)
			c.line()
			// The whole flood is read only if its replies are read.
			var wg sync.WaitGroup
			wg.Go(func() {
				_, err := io.WriteString(c.conn, tc.input)
				if err != nil && !tc.ends && !errors.Is(err, net.ErrClosed) {
					t.Errorf("send: %v", err)
				}
				if !tc.ends {
					c.conn.CloseWrite()
				}
			})
			var got bytes.Buffer
			_, err := io.Copy(&got, c.in)
			if err != nil && !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("read: %v", err)
			}
			wg.Wait()
			first, _, _ := strings.Cut(got.String(), "\n")
			if name != "binary" && (!strings.Contains(first, tc.reply) ||
				(tc.reply == "") != (first == "")) {
				t.Errorf("first reply %.200q, want %q", first, tc.reply)
			}
			test.Eventually(t, "the session is gone",
				func() bool { s.mu.Lock(); defer s.mu.Unlock(); return len(s.sessions) == 0 })
			alive(t, path)
		})
	}
}

// After an error the stream continues after the next newline, and 0xFF drops incomplete input.
func TestResync(t *testing.T) {
	_, path := start(t, Options{}, map[string]Handler{"echo": echo})
	c := dialScript(t, path).ready()
	for _, bad := range []string{"junk {}\n", "{\"execute\": \"\n", strings.Repeat("[", 100) +
		"{}\n"} {
		c.send(bad + `{"execute":"echo"}`)
		if l := c.line(); !strings.Contains(l, "JSON parse error") {
			t.Errorf("%.20q: %s", bad, l)
		}
		c.want(`{"return":{}}`)
	}
	c.send("{\"execute\":\"half\xff" + `{"execute":"echo"}`)
	c.want(`{"return":{}}`)
}

// A hundred clients connect at once, repeatedly. Each is served or gets the error that there are
// too many.
func TestManyClients(t *testing.T) {
	s, path := start(t, Options{MaxClients: 20}, map[string]Handler{"echo": echo})
	var wg sync.WaitGroup
	var mu sync.Mutex
	served, turned := 0, 0
	hold := make(chan struct{})
	for range 100 {
		wg.Go(func() {
			c := dialScript(t, path)
			first, err := c.in.ReadString('\n')
			if err != nil {
				t.Errorf("greeting: %v", err)
				return
			}
			mu.Lock()
			if strings.Contains(first, "no more are allowed") {
				turned++
			} else {
				served++
			}
			done := served+turned == 100
			mu.Unlock()
			if done {
				close(hold)
			}
			<-hold
			c.conn.Close()
		})
	}
	wg.Wait()
	if served != 20 || turned != 80 {
		t.Errorf("%d served and %d refused, want 20 and 80", served, turned)
	}
	test.Eventually(t, "all are gone",
		func() bool { s.mu.Lock(); defer s.mu.Unlock(); return len(s.sessions) == 0 })
	for range 100 {
		wg.Go(func() {
			for {
				c := dialScript(t, path)
				if first, err := c.in.ReadString('\n'); err == nil && !strings.Contains(first,
					"no more are allowed") {
					io.WriteString(c.conn, `{"execute":"qmp_capabilities"}{"execute":"echo"}`)
					a, _ := c.in.ReadString('\n')
					b, err := c.in.ReadString('\n')
					if want := "{\"return\":{}}\n"; a != want || b != want {
						t.Errorf("got %q, %q, %v", a, b, err)
					}
					c.conn.Close()
					return
				}
				c.conn.Close()
				time.Sleep(time.Millisecond)
			}
		})
	}
	wg.Wait()
}

// Close returns although a client with a full queue does not read.
func TestStuckClientDoesNotHoldClose(t *testing.T) {
	s, path := start(t, Options{WriteTimeout: 200 * time.Millisecond}, nil)
	c := dialScript(t, path).ready()
	test.Eventually(t, "it takes events", func() bool { return listening(s) == 1 })
	pad := strings.Repeat("x", 1000)
	for range 800 {
		s.Emit("COW_TEST", pad)
	}
	test.Must(t, s.Close())
	c.conn.Close()
}
