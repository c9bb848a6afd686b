package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"cowblk/internal/test"
)

// A transcript as of a socat session: "<" is sent by the client, ">" is received.
const transcript = `
> {"QMP":{"version":{"qemu":{"major":1,"minor":2,"micro":3},"package":"cowblk"},"capabilities":[]}}
< {"execute":"query-version"}
> {"error":{"class":"CommandNotFound","desc":"Expecting capabilities negotiation with 'qmp_capabilities'"}}
< {"execute":"qmp_capabilities","arguments":{"enable":["oob"]}}
> {"error":{"class":"GenericError","desc":"Capability 'oob' not available"}}
< {"execute":"qmp_capabilities","id":0}
> {"return":{},"id":0}
< {"execute":"qmp_capabilities"}
> {"error":{"class":"CommandNotFound","desc":"Capabilities negotiation is already complete, command ignored"}}
< {"execute":"query-version","id":{"any":["thing",null]}}
> {"return":{"qemu":{"major":1,"minor":2,"micro":3},"package":"cowblk"},"id":{"any":["thing",null]}}
< {"execute":"query-version","arguments":{"x":1}}
> {"error":{"class":"GenericError","desc":"Parameter 'x' is unexpected"}}
< {"execute":"query-commands","id":null}
> {"return":[{"name":"cow-last-error"},{"name":"cow-set-events"},{"name":"echo"},{"name":"emit"},{"name":"fail"},{"name":"qmp_capabilities"},{"name":"query-commands"},{"name":"query-version"}],"id":null}
< {"execute":"echo","arguments":{"html":"<&>","u":"ü"},"id":"a"} {"execute":"echo"}
> {"return":{"html":"<&>","u":"ü"},"id":"a"}
> {"return":{}}
< {"execute":"fail","id":7}
> {"error":{"class":"DeviceNotFound","desc":"disk vm9: wrapped: no such disk"},"id":7}
< {"execute":"nothing","id":8}
> {"error":{"class":"CommandNotFound","desc":"The command nothing has not been found"},"id":8}
< {"id":9}
> {"error":{"class":"GenericError","desc":"QMP input lacks member 'execute'"},"id":9}
< {"execute":5}
> {"error":{"class":"GenericError","desc":"QMP input member 'execute' must be a string"}}
< {"execute":null}
> {"error":{"class":"GenericError","desc":"QMP input member 'execute' must be a string"}}
< {"execute":"echo","arguments":[]}
> {"error":{"class":"GenericError","desc":"QMP input member 'arguments' must be an object"}}
< {"execute":"echo","argument":{}}
> {"error":{"class":"GenericError","desc":"QMP input member 'argument' is unexpected"}}
< ["execute"]
> {"error":{"class":"GenericError","desc":"QMP input must be a JSON object"}}
< hello, is this {"execute":"echo"}?
> {"error":{"class":"GenericError","desc":"JSON parse error, expected an object"}}
< {"execute":"half
> {"error":{"class":"GenericError","desc":"JSON parse error, newline in a string"}}
< {"execute" "echo"}
> {"error":{"class":"GenericError","desc":"JSON parse error, invalid character '\"' after object key"}}
< {"execute":"emit","id":10}
> {"event":"COW_TEST","data":{"n":1},"timestamp":T}
> {"event":"COW_TEST","data":{},"timestamp":T}
> {"return":{},"id":10}
< {"execute":"cow-set-events","arguments":{"enable":false}}
> {"return":{}}
< {"execute":"emit"}
> {"return":{}}
< {"execute":"cow-set-events"}
> {"error":{"class":"GenericError","desc":"Parameter 'enable' is missing"}}
< {"execute":"cow-last-error"}
> {"return":{"class":"GenericError","desc":"Parameter 'enable' is missing"}}
`

func startTranscript(t *testing.T) string {
	var s *Server
	s, path := start(t, Options{}, map[string]Handler{
		"echo": echo,
		"fail": func(context.Context, json.RawMessage) (any, error) {
			return nil, fmt.Errorf("disk vm9: wrapped: %w", &Error{Class: DeviceNotFound,
				Desc: "no such disk"})
		},
	})
	s.Register("emit", func(context.Context, json.RawMessage) (any, error) {
		s.Emit("COW_TEST", map[string]int{"n": 1})
		s.Emit("COW_TEST", nil)
		return nil, nil
	})
	return path
}

func TestTranscript(t *testing.T) {
	c := dialScript(t, startTranscript(t))
	for _, l := range strings.Split(strings.TrimSpace(transcript), "\n") {
		if l[0] == '<' {
			c.send(l[2:] + "\n")
			continue
		}
		if got := stamp.ReplaceAllString(c.line(), `"timestamp":T`); got != l[2:] {
			t.Fatalf("got  %s\nwant %s", got, l[2:])
		}
	}
}

// TestSocat runs the same transcript with socat, which sends everything at once and half-closes the
// connection: all replies must arrive.
func TestSocat(t *testing.T) {
	path := startTranscript(t)
	var in, want strings.Builder
	for _, l := range strings.Split(strings.TrimSpace(transcript), "\n") {
		if l[0] == '<' {
			in.WriteString(l[2:] + "\n")
		} else {
			want.WriteString(l[2:] + "\n")
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), waitTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, "socat", "-t", "15", "-", "UNIX-CONNECT:"+path)
	cmd.Stdin = strings.NewReader(in.String())
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("socat: %v\n%s", err, out)
	}
	if got := stamp.ReplaceAllString(string(out), `"timestamp":T`); got != want.String() {
		t.Errorf("got\n%s\nwant\n%s", got, want.String())
	}
}

func TestHalfCloseKeepsCommand(t *testing.T) {
	release := make(chan struct{})
	_, path := start(t, Options{}, map[string]Handler{
		"wait": func(ctx context.Context, _ json.RawMessage) (any, error) {
			select {
			case <-ctx.Done():
				return nil, ctx.Err()
			case <-release:
				return "done", nil
			}
		},
	})
	c := dialScript(t, path).ready()
	c.send(`{"execute":"wait"}`)
	c.conn.CloseWrite()
	time.Sleep(3 * hangupPoll) // long enough for the server to notice a hang-up
	close(release)
	c.want(`{"return":"done"}`)
	test.ErrorIs(t, test.Err(c.in.ReadByte()), io.EOF, "after the last reply")
}

// The connection is closed during a command, also when queued commands have stopped the reader.
func TestDisconnectCancels(t *testing.T) {
	for _, behind := range []int{0, 1, 3 * maxPending} {
		t.Run(fmt.Sprint(behind), func(t *testing.T) {
			entered, left := make(chan struct{}, 100), make(chan struct{}, 100)
			_, path := start(t, Options{}, map[string]Handler{
				"wait": func(ctx context.Context, _ json.RawMessage) (any, error) {
					entered <- struct{}{}
					<-ctx.Done()
					left <- struct{}{}
					return nil, ctx.Err()
				},
			})
			c := dialScript(t, path).ready()
			c.send(strings.Repeat(`{"execute":"wait"}`, 1+behind))
			<-entered
			c.conn.Close()
			select {
			case <-left:
			case <-time.After(waitTimeout):
				t.Fatal("the command was not cancelled")
			}
		})
	}
}

// The reply of a command that ends the server arrives, and Close waits for it.
func TestQuit(t *testing.T) {
	for range 20 {
		t.Run("", func(t *testing.T) {
			stop := make(chan struct{})
			s, path := start(t, Options{}, map[string]Handler{
				"quit": func(context.Context, json.RawMessage) (any, error) {
					close(stop)
					return nil, nil
				},
			})
			closed := make(chan error, 1)
			go func() { <-stop; closed <- s.Close() }()
			c := dialScript(t, path).ready()
			c.send(`{"execute":"quit","id":1}`)
			c.want(`{"return":{},"id":1}`)
			test.ErrorIs(t, test.Err(c.in.ReadByte()), io.EOF, "after quit")
			test.Check(t, <-closed)
		})
	}
}

func TestCloseCancelsAndFlushes(t *testing.T) {
	entered := make(chan struct{})
	s, path := start(t, Options{}, map[string]Handler{
		"wait": func(ctx context.Context, _ json.RawMessage) (any, error) {
			close(entered)
			<-ctx.Done()
			return nil, &Error{Class: DeviceNotActive, Desc: "stopped"}
		},
	})
	c := dialScript(t, path).ready()
	idle := dialScript(t, path).ready()
	c.send(`{"execute":"wait","id":1} {"execute":"wait","id":2}`)
	<-entered
	s.Emit("SHUTDOWN", nil)
	test.Must(t, s.Close())
	test.ErrorIs(t, s.Listen(path), ErrClosed, "Listen after Close")
	s.Emit("LATE", nil)
	c.line()
	c.want(`{"error":{"class":"DeviceNotActive","desc":"stopped"},"id":1}`)
	if !strings.Contains(idle.line(), "SHUTDOWN") {
		t.Error("event lost in Close")
	}
	for _, x := range []*script{c, idle} {
		if _, err := x.in.ReadByte(); err == nil {
			t.Error("something came after Close")
		}
	}
}

// Many emitters, many readers: each reader gets each emitter's events in order, all readers get the
// same order, and timestamps never go back.
func TestEventOrder(t *testing.T) {
	const emitters, each, readers = 4, 200, 5
	s, path := start(t, Options{}, nil)
	var scripts []*script
	for range readers {
		scripts = append(scripts, dialScript(t, path).ready())
	}
	test.Eventually(t, "all clients take events", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		n := 0
		for c := range s.sessions {
			if c.events {
				n++
			}
		}
		return n == readers
	})
	var wg sync.WaitGroup
	for e := range emitters {
		wg.Go(func() {
			for i := range each {
				s.Emit("COW_TEST", map[string]int{"from": e, "n": i})
			}
		})
	}
	var first []string
	for r, c := range scripts {
		next, last := [emitters]int{}, int64(0)
		for i := range emitters * each {
			l := c.line()
			var ev struct {
				Data      struct{ From, N int }
				Timestamp struct{ Seconds, Microseconds int64 }
			}
			test.Must(t, json.Unmarshal([]byte(l), &ev))
			if ev.Data.N != next[ev.Data.From] {
				t.Fatalf("reader %d: emitter %d sent %d, expected %d", r, ev.Data.From, ev.Data.N,
					next[ev.Data.From])
			}
			next[ev.Data.From]++
			if at := ev.Timestamp.Seconds*1e6 + ev.Timestamp.Microseconds; at < last {
				t.Fatalf("time went back from %d to %d", last, at)
			} else {
				last = at
			}
			if r == 0 {
				first = append(first, l)
			} else if first[i] != l {
				t.Fatalf("reader %d got another order", r)
			}
		}
	}
	wg.Wait()
}

func TestReplyTooLong(t *testing.T) {
	_, path := start(t, Options{}, map[string]Handler{
		"long": func(_ context.Context, args json.RawMessage) (any, error) {
			var p struct{ N int }
			if err := Decode(args, &p); err != nil {
				return nil, err
			}
			return strings.Repeat("x", p.N), nil
		},
		"fail": func(context.Context, json.RawMessage) (any, error) {
			return nil, errors.New(strings.Repeat("ü", maxText))
		},
		"nan":   func(context.Context, json.RawMessage) (any, error) { return func() {}, nil },
		"empty": func(context.Context, json.RawMessage) (any, error) { return nil, errors.New("") },
	})
	c, err := Dial(path, waitTimeout)
	test.Must(t, err)
	ctx := context.Background()
	var s string
	fits := maxText - len(`{"return":"","id":1}`) - 1
	if err := c.Run(ctx, "long", map[string]int{"N": fits}, &s); err != nil || len(s) != fits {
		t.Errorf("longest reply: %d bytes, %v", len(s), err)
	}
	for cmd, want := range map[string]string{
		"long": "ask for less", "fail": "üüü", "nan": "cannot be encoded", "empty": "unknown error",
	} {
		var e *Error
		err := c.Run(ctx, cmd, map[string]int{"N": fits + 1}, nil)
		if !errors.As(err, &e) || e.Class != GenericError || !strings.Contains(e.Desc, want) {
			t.Errorf("%s: %.200v, want an *Error with %q", cmd, err, want)
		}
	}
}

func TestSeveralSockets(t *testing.T) {
	test.NoLeaks(t)
	s := NewServer(Options{})
	var paths []string
	for i := range 3 {
		paths = append(paths, fmt.Sprintf("%s/%d.ctl", t.TempDir(), i))
		test.Must(t, s.Listen(paths[i]))
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve() }()
	for _, p := range paths {
		dialScript(t, p).ready()
	}
	test.Must(t, s.Close())
	if err := <-served; err != nil && !errors.Is(err, ErrClosed) {
		t.Fatal(err)
	}
	for _, p := range paths {
		if _, err := os.Lstat(p); !os.IsNotExist(err) {
			t.Errorf("%s is still there", p)
		}
	}
}
