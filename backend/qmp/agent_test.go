package qmp

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"cowblk/backend/control"
	"cowblk/backend/qmp/link"
	"cowblk/internal/test"
)

// guest is a fake qemu-ga. Its state outlives connections. faults selects the fault at the n-th use
// of a command, counted from 0.
type guest struct {
	mu     sync.Mutex
	frozen bool
	log    []string // executed commands, without syncs
	uses   map[string]int
	fault  func(command string, use int) string
	stale  string        // sent to every client first
	wake   chan struct{} // closed at the end, to release blocked commands
}

func newGuest(t *testing.T) (*guest, *peer) {
	g := &guest{uses: make(map[string]int), wake: make(chan struct{})}
	p := listen(t, g.serve)
	t.Cleanup(func() { close(g.wake) }) // before the peer is stopped
	return g, p
}

func (g *guest) serve(conn net.Conn, in *bufio.Reader) {
	g.mu.Lock()
	fmt.Fprint(conn, g.stale)
	g.mu.Unlock()
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return
		}
		line = line[strings.LastIndexByte(line, 0xff)+1:]
		var r struct {
			Execute   string
			Arguments struct{ ID int64 }
		}
		if json.Unmarshal([]byte(line), &r) != nil {
			say(conn, `{"error":{"class":"GenericError","desc":"parse error"}}`)
			continue
		}
		if !g.execute(conn, r.Execute, r.Arguments.ID) {
			return
		}
	}
}

// execute runs one command; false: disconnect.
func (g *guest) execute(conn net.Conn, command string, id int64) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	fault := ""
	if g.fault != nil {
		fault = g.fault(command, g.uses[command])
	}
	g.uses[command]++
	switch fault {
	case "hang": // as a freeze that waits for a busy disk; later commands wait
		g.mu.Unlock()
		buf := make([]byte, 1)
		for {
			if _, err := conn.Read(buf); err != nil {
				break
			}
		}
		g.mu.Lock()
		return false
	case "drop":
		return false
	case "error":
		say(conn, `{"error":{"class":"GenericError","desc":"injected"}}`)
		return true
	case "garbage":
		say(conn, `}{ not json`)
		return true
	case "unknown":
		say(conn, `{"error":{"class":"CommandNotFound","desc":"Command guest-fsfreeze-freeze has been disabled"}}`)
		return true
	}
	if command != "guest-sync-delimited" {
		g.log = append(g.log, command)
	}
	reply := ""
	switch command {
	case "guest-sync-delimited":
		reply = fmt.Sprintf("\xff{\"return\": %d}", id)
	case "guest-fsfreeze-status":
		reply = `{"return": "thawed"}`
		if g.frozen {
			reply = `{"return": "frozen"}`
		}
	case "guest-fsfreeze-freeze":
		g.frozen = true
		reply = `{"return": 2}`
	case "guest-fsfreeze-thaw":
		reply = `{"return": 0}`
		if g.frozen {
			reply = `{"return": 2}`
		}
		g.frozen = false
	default:
		reply = `{"error":{"class":"CommandNotFound","desc":"no such command"}}`
	}
	switch fault {
	case "mute": // executed, but the reply is lost
		return true
	case "half":
		fmt.Fprint(conn, reply[:len(reply)/2])
		return false
	case "late":
		select {
		case <-time.After(50 * time.Millisecond):
		case <-g.wake:
		}
	}
	say(conn, "%s", reply)
	return true
}

func (g *guest) state() (frozen bool, log []string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.frozen, slices.Clone(g.log)
}

func TestAgent(t *testing.T) {
	g, p := newGuest(t)
	// Left by an earlier client: half a reply, another sync, noise around sentinels.
	g.mu.Lock()
	g.stale = `"frozen"}` + "\n\xff{\"return\": 17}\n\xff\xff\xff{\"ret\xff" + strings.Repeat("x",
		2*maxAgentLine) + "\n"
	g.mu.Unlock()
	a := NewAgent(AgentOptions{Address: p.addr})
	for range 3 {
		test.Must(t, a.Freeze(within(t, waitTimeout)))
		if frozen, _ := g.state(); !frozen {
			t.Fatal("Freeze returned and the guest is not frozen")
		}
		test.Must(t, a.Thaw(within(t, waitTimeout)))
		if frozen, _ := g.state(); frozen {
			t.Fatal("Thaw returned and the guest is frozen")
		}
	}
}

func TestAgentAlreadyFrozen(t *testing.T) {
	g, p := newGuest(t)
	g.frozen = true
	a := NewAgent(AgentOptions{Address: p.addr})
	err := WhileQuiesced(within(t, waitTimeout), a, 0, 0, func(context.Context) error {
		t.Error("f was called")
		return nil
	})
	test.ErrorIs(t, err, ErrAlreadyFrozen)
	if frozen, _ := g.state(); !frozen {
		t.Error("another's freeze was undone")
	}
	test.Check(t, a.ForceThaw(within(t, waitTimeout)))
	if frozen, _ := g.state(); frozen {
		t.Error("still frozen after Release")
	}
}

// TestAgentFaults enumerates the faults of the first and the second use of every command. After
// each the guest is thawed, and WhileQuiesced calls f only while it is frozen.
func TestAgentFaults(t *testing.T) {
	for _, command := range []string{"guest-sync-delimited", "guest-fsfreeze-status",
		"guest-fsfreeze-freeze", "guest-fsfreeze-thaw"} {
		for _, fault := range []string{"hang", "drop", "error", "garbage", "mute", "half", "late"} {
			for use := range 2 {
				t.Run(fmt.Sprintf("%s/%s/%d", command, fault, use), func(t *testing.T) {
					g, p := newGuest(t)
					g.fault = func(c string, n int) string {
						if c == command && n == use {
							return fault
						}
						return ""
					}
					a := NewAgent(AgentOptions{Address: p.addr})
					called := false
					err := WhileQuiesced(context.Background(), a,
						freezeTime(command == "guest-fsfreeze-thaw"), thawTime,
						func(context.Context) error {
							called = true
							if frozen, _ := g.state(); !frozen {
								t.Error("f was called while the guest was not frozen")
							}
							return nil
						})
					if frozen, log := g.state(); frozen {
						t.Errorf("the guest is still frozen, after %v", log)
					}
					if errors.Is(err, ErrNotThawed) || (err == nil) != called {
						t.Errorf("f called: %v, error: %v", called, err)
					}
					// A fault after the freeze is handled without an error.
					if command == "guest-fsfreeze-thaw" && err != nil {
						t.Errorf("a fault in thawing became an error though it was mended: %v", err)
					}
				})
			}
		}
	}
}

// The error says that a person must act, and why.
func TestAgentNeverThaws(t *testing.T) {
	g, p := newGuest(t)
	g.fault = func(c string, _ int) string {
		if c == "guest-fsfreeze-thaw" {
			return "error"
		}
		return ""
	}
	a := NewAgent(AgentOptions{Address: p.addr})
	failed := errors.New("f failed")
	var refused *link.Error
	err := WhileQuiesced(context.Background(), a, waitTimeout, 300*time.Millisecond,
		func(context.Context) error { return failed })
	if !errors.Is(err, ErrNotThawed) || !errors.Is(err, failed) || !errors.As(err, &refused) {
		t.Errorf("got %v", err)
	}
	g.mu.Lock()
	g.fault = nil
	g.mu.Unlock()
	test.Check(t, a.Thaw(within(t, waitTimeout)), "a later Thaw")
}

// No agent behind the port.
func TestAgentSilent(t *testing.T) {
	p := listen(t, func(conn net.Conn, in *bufio.Reader) {
		for {
			if _, err := in.ReadByte(); err != nil {
				return
			}
		}
	})
	a := NewAgent(AgentOptions{Address: p.addr})
	err := a.Freeze(within(t, 100*time.Millisecond))
	test.Texts(t, "agent.texts")(t, "silent", err)
}

// A peer that sends without end is disconnected.
func TestAgentFlood(t *testing.T) {
	p := listen(t, func(conn net.Conn, _ *bufio.Reader) {
		noise := []byte(strings.Repeat("x\xffy\n", 1<<16))
		for {
			if _, err := conn.Write(noise); err != nil {
				return
			}
		}
	})
	a := NewAgent(AgentOptions{Address: p.addr})
	test.Texts(t, "agent.texts")(t, "flood", a.Freeze(within(t, waitTimeout)))
}

// The guest does not stay frozen when the caller's context ends.
func TestAgentCancelled(t *testing.T) {
	g, p := newGuest(t)
	ctx, cancel := context.WithCancel(context.Background())
	err := WhileQuiesced(ctx, NewAgent(AgentOptions{Address: p.addr}), waitTimeout, waitTimeout,
		func(ctx context.Context) error {
			cancel()
			return ctx.Err()
		})
	if !errors.Is(err, context.Canceled) || errors.Is(err, ErrNotThawed) {
		t.Errorf("got %v", err)
	}
	if frozen, _ := g.state(); frozen {
		t.Error("still frozen")
	}
}

func TestAgentRemoteError(t *testing.T) {
	g, p := newGuest(t)
	g.fault = func(c string, _ int) string {
		if c == "guest-fsfreeze-status" {
			return "error"
		}
		return ""
	}
	var e *control.Error
	if err := NewAgent(AgentOptions{Address: p.addr}).Freeze(within(t, waitTimeout)); !errors.As(
		err, &e) || e.Desc != "injected" {
		t.Errorf("got %v", err)
	}
}

// FuzzSync: with any input before our sentinel the reply is found; without a sentinel there is an
// error.
func FuzzSync(f *testing.F) {
	f.Add([]byte("\xff{\"return\": 1}\n"), true)
	f.Add([]byte("{\"ret\xff\xff"), true)
	f.Add([]byte(strings.Repeat("z", 100)), false)
	f.Fuzz(func(t *testing.T, noise []byte, answer bool) {
		ours, theirs := net.Pipe()
		defer ours.Close()
		done := make(chan struct{})
		go func() {
			defer close(done)
			defer theirs.Close()
			line, err := bufio.NewReader(theirs).ReadString('\n')
			if err != nil {
				return
			}
			var r struct{ Arguments struct{ ID int64 } }
			if json.Unmarshal([]byte(line[1:]), &r) != nil {
				t.Errorf("sync is %q", line)
			}
			theirs.Write(noise)
			if answer {
				fmt.Fprintf(theirs, "\xff{\"return\": %d}\n", r.Arguments.ID)
			}
		}()
		c := &agentConn{ours, bufio.NewReaderSize(ours, maxAgentLine)}
		if err := c.sync(); (err == nil) != answer {
			t.Errorf("after %q, answered: %v: %v", noise, answer, err)
		}
		ours.Close()
		<-done
	})
}
