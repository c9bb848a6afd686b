package control

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/digitalocean/go-qemu/qmp"

	"cowblk/backend/qmp/link"
	"cowblk/internal/test"
)

func TestClient(t *testing.T) {
	s, path := start(t, Options{}, map[string]Handler{
		"echo": echo,
		"fail": func(context.Context, json.RawMessage) (any, error) {
			return nil, &Error{Class: DeviceNotFound, Desc: "disk vm9 is not served here"}
		},
	})
	c, err := Dial(path, waitTimeout)
	test.Must(t, err)
	test.Equal(t, c.Version(), "1.2.3", "version")
	ctx := context.Background()
	for i := range 50 {
		s.Emit("NOISE", strings.Repeat("n", i*100)) // turned off on this connection
		var out struct{ N int }
		if err := c.Run(ctx, "echo", map[string]int{"N": i}, &out); err != nil || out.N != i {
			t.Fatalf("echo %d: %d, %v", i, out.N, err)
		}
		var e *Error
		if err := c.Run(ctx, "fail", nil, nil); !errors.As(err, &e) ||
			*e != (Error{Class: DeviceNotFound, Desc: "disk vm9 is not served here"}) {
			t.Fatalf("fail: %#v", err)
		}
		if err := c.Run(ctx, "missing", nil, nil); !errors.As(err, &e) ||
			e.Class != CommandNotFound {
			t.Fatalf("missing: %#v", err)
		}
	}
	var mismatch *json.UnmarshalTypeError
	if err := c.Run(ctx, "echo", map[string]int{"N": 1}, new([]string)); !errors.As(err,
		&mismatch) {
		t.Errorf("reply of another type: %v", err)
	}
	var unsupported *json.UnsupportedTypeError
	if err := c.Run(ctx, "echo", func() {}, nil); !errors.As(err, &unsupported) {
		t.Errorf("arguments that JSON does not know: %v", err)
	}
	s.Close()
	test.ErrorIs(t, c.Run(ctx, "echo", nil, nil), ErrNoDaemon, "without a daemon")
}

func TestClientEvents(t *testing.T) {
	s, path := start(t, Options{}, nil)
	c, err := Dial(path, waitTimeout)
	test.Must(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	events, err := c.Events(ctx)
	test.Must(t, err)
	test.Eventually(t, "the connection takes events", func() bool { return listening(s) == 1 })
	for i := range 100 {
		s.Emit("COW_TEST", map[string]int{"n": i})
	}
	for i := range 100 {
		if e := <-events; e.Event != "COW_TEST" || e.Data["n"] != float64(i) ||
			e.Timestamp.Seconds == 0 {
			t.Fatalf("event %d: %+v", i, e)
		}
	}
	// Cancelled while events are pending: commands still run, and nothing leaks (checked when the
	// test ends).
	for range 100 {
		s.Emit("COW_TEST", nil)
	}
	test.Check(t, c.Run(ctx, "query-version", nil, nil))
	cancel()
	for range events {
	}
}

func TestClientEventsEndWithServer(t *testing.T) {
	s, path := start(t, Options{}, nil)
	c, err := Dial(path, waitTimeout)
	test.Must(t, err)
	events, err := c.Events(context.Background())
	test.Must(t, err)
	s.Close()
	for range events {
	}
	test.ErrorIs(t, c.Run(context.Background(), "query-version", nil, nil), ErrNoDaemon,
		"Run without a daemon")
}

func TestClientCancel(t *testing.T) {
	cancelled := make(chan struct{})
	_, path := start(t, Options{}, map[string]Handler{
		"wait": func(ctx context.Context, _ json.RawMessage) (any, error) {
			<-ctx.Done()
			close(cancelled)
			return nil, ctx.Err()
		},
	})
	c, err := Dial(path, waitTimeout)
	test.Must(t, err)
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	test.ErrorIs(t, c.Run(ctx, "wait", nil, nil), context.DeadlineExceeded, "Run")
	<-cancelled
	test.Check(t, c.Run(context.Background(), "query-version", nil, nil), "the next Run")
}

func TestDialNobody(t *testing.T) {
	test.NoLeaks(t)
	path := filepath.Join(t.TempDir(), "ctl")
	test.ErrorIs(t, test.Err(Dial(path, 0)), ErrNoDaemon, "no socket")
	stale(t, path)
	test.ErrorIs(t, test.Err(Dial(path, 0)), ErrNoDaemon, "stale socket")
}

// TestDialOdd dials peers that are not a control server.
func TestDialOdd(t *testing.T) {
	text := test.Texts(t, "odd_peers.texts")
	const greeting = `{"QMP":{"version":{},"capabilities":[]}}` + "\n"
	for name, tc := range map[string]struct {
		lines []string // each sent after a read, except the first
	}{
		"mute":          {},
		"gone":          {lines: []string{"close"}},
		"garbage":       {lines: []string{"220 mail.example.org ESMTP\n"}},
		"half greeting": {lines: []string{`{"QMP":`}},
		"refuses": {lines: []string{greeting,
			`{"error":{"class":"GenericError","desc":"not you"}}` + "\n"}},
		"then mute": {lines: []string{greeting, `{"return":{}}` + "\n"}},
		"then gone": {lines: []string{greeting, `{"return":{}}` + "\n", "close"}},
		"reply too long": {lines: []string{greeting, `{"return":{}}` + "\n",
			strings.Repeat("x", link.MaxLine+1)}},
	} {
		t.Run(name, func(t *testing.T) {
			test.NoLeaks(t)
			path := filepath.Join(t.TempDir(), "ctl")
			l, err := net.Listen("unix", path)
			test.Must(t, err)
			defer l.Close()
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				conn, err := l.Accept()
				if err != nil {
					return
				}
				defer conn.Close()
				buf := make([]byte, 4096)
				for i, line := range tc.lines {
					if i > 0 {
						conn.Read(buf)
					}
					if line == "close" {
						return
					}
					io.WriteString(conn, line)
				}
				io.Copy(io.Discard, conn)
			}()
			c := &Client{path: path, timeout: 200 * time.Millisecond}
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			defer cancel()
			err = c.Run(ctx, "query-version", nil, nil)
			if err == nil {
				t.Fatal("no error")
			}
			text(t, name, err)
			l.Close()
			<-ended
		})
	}
}

// Run works on a QMP server that has none of our own commands and does not repeat ids.
func TestForeignServer(t *testing.T) {
	test.NoLeaks(t)
	path := filepath.Join(t.TempDir(), "qmp")
	l, err := net.Listen("unix", path)
	test.Must(t, err)
	defer l.Close()
	serve := func(conn net.Conn) {
		defer conn.Close()
		fmt.Fprintln(conn, `{"QMP":{"version":{},"capabilities":[]}}`)
		for d := json.NewDecoder(bufio.NewReader(conn)); ; {
			var r qmp.Command
			if d.Decode(&r) != nil {
				return
			}
			switch r.Execute {
			case "qmp_capabilities", "known":
				fmt.Fprintln(conn, `{"return":{}}`)
			default:
				fmt.Fprintf(conn, `{"error":{"class":"CommandNotFound","desc":"no %s"}}`+"\n",
					r.Execute)
			}
		}
	}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go serve(conn)
		}
	}()
	c, err := Dial(path, waitTimeout)
	test.Must(t, err)
	test.Check(t, c.Run(context.Background(), "known", nil, nil))
	var e *Error
	if err := c.Run(context.Background(), "other", nil, nil); !errors.As(err, &e) ||
		*e != (Error{Class: CommandNotFound, Desc: "no other"}) {
		t.Errorf("%#v", err)
	}
}

// TestSocketMonitor drives the server with go-qemu alone, events and commands on one connection, as
// another program would.
func TestSocketMonitor(t *testing.T) {
	s, path := start(t, Options{}, map[string]Handler{"echo": echo})
	mon, err := qmp.NewSocketMonitor("unix", path, waitTimeout)
	test.Must(t, err)
	test.Must(t, mon.Connect())
	if v := mon.Version; v.String() != "1.2.3" || v.Package != "cowblk" {
		t.Errorf("version %+v", v)
	}
	events, err := mon.Events(context.Background())
	test.Must(t, err)
	if out, err := mon.Run([]byte(`{"execute":"echo","arguments":{"a":1},"id":"x"}`)); err != nil ||
		string(out) != `{"return":{"a":1},"id":"x"}` {
		t.Errorf("echo: %s, %v", out, err)
	}
	_, err = mon.Run([]byte(`{"execute":"missing"}`))
	test.Texts(t, "odd_peers.texts")(t, "command missing, through go-qemu", err)
	test.Eventually(t, "it takes events", func() bool { return listening(s) == 1 })
	s.Emit("COW_PROMOTED", map[string]string{"disk": "vm1"})
	if e := <-events; e.Event != "COW_PROMOTED" || e.Data["disk"] != "vm1" ||
		e.Timestamp.Seconds == 0 {
		t.Errorf("event %+v", e)
	}
	test.Check(t, mon.Disconnect())
}
