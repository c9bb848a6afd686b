package backendtest

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"cowblk/backend/qmp"
	"cowblk/internal/test"
)

// Guest is a guest agent ("agent") and a QEMU monitor ("qmp") on two sockets in a directory. They
// outlive the processes that use them.
type Guest struct {
	dir string

	mu     sync.Mutex
	frozen bool
	paused bool
	hook   func(when, command string)
}

// NewGuest makes a guest that runs. The test's end closes it.
func NewGuest(t testing.TB, dir string) *Guest {
	t.Helper()
	g := &Guest{dir: dir}
	var wg sync.WaitGroup
	t.Cleanup(wg.Wait)
	for name, serve := range map[string]func(net.Conn){"agent": g.agent, "qmp": g.monitor} {
		l, err := net.Listen("unix", filepath.Join(dir, name))
		test.Must(t, err)
		t.Cleanup(func() { l.Close() })
		wg.Go(func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				serve(conn)
				conn.Close()
			}
		})
	}
	return g
}

// Spec returns the options of a promotion that quiesce this guest.
func (g *Guest) Spec(mode string) qmp.Spec {
	if mode == qmp.QuiesceGuest {
		return qmp.Spec{Mode: mode, Agent: "unix:" + filepath.Join(g.dir, "agent")}
	}
	return qmp.Spec{Mode: mode, QMP: "unix:" + filepath.Join(g.dir, "qmp")}
}

// Quiesced reports whether the guest is frozen or paused.
func (g *Guest) Quiesced() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.frozen || g.paused
}

// SetHook sets a function that is called with "before" or "after", and each command that freezes,
// thaws, stops or continues the guest; nil: none.
func (g *Guest) SetHook(f func(when, command string)) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.hook = f
}

// Hangs makes the agent or the monitor hang once, at a command, until resume.
func (g *Guest) Hangs(when, command string) (hanging <-chan struct{}, resume func()) {
	caught, open := make(chan struct{}), make(chan struct{})
	var once, release sync.Once
	g.SetHook(func(w, c string) {
		if w == when && c == command {
			once.Do(func() { close(caught); <-open })
		}
	})
	return caught, func() { release.Do(func() { close(open) }) }
}

// each calls f for every command; id is QMP's or the agent's.
func each(conn net.Conn, f func(command string, id json.RawMessage)) {
	in := bufio.NewReader(conn)
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return
		}
		line = line[strings.LastIndexByte(line, 0xff)+1:]
		var r struct {
			Execute   string
			ID        json.RawMessage
			Arguments struct{ ID json.RawMessage }
		}
		if json.Unmarshal([]byte(line), &r) == nil {
			f(r.Execute, append(r.ID, r.Arguments.ID...))
		}
	}
}

// change executes a state change between the two calls of hook.
func (g *Guest) change(command string, what *bool, to bool) {
	g.mu.Lock()
	hook := g.hook
	g.mu.Unlock()
	if hook != nil {
		hook("before", command)
		defer hook("after", command)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	*what = to
}

func (g *Guest) agent(conn net.Conn) {
	each(conn, func(command string, id json.RawMessage) {
		reply := `{"return": 1}`
		switch command {
		case "guest-sync-delimited":
			reply = fmt.Sprintf("\xff{\"return\": %s}", id)
		case "guest-fsfreeze-status":
			reply = `{"return": "thawed"}`
			if g.Quiesced() {
				reply = `{"return": "frozen"}`
			}
		case "guest-fsfreeze-freeze":
			g.change(command, &g.frozen, true)
		case "guest-fsfreeze-thaw":
			g.change(command, &g.frozen, false)
		}
		fmt.Fprintln(conn, reply)
	})
}

func (g *Guest) monitor(conn net.Conn) {
	fmt.Fprintln(conn, `{"QMP": {"version": {"qemu": {"micro": 2, "minor": 0, "major": 10}, "package": ""}, "capabilities": []}}`)
	each(conn, func(command string, id json.RawMessage) {
		result := `{}`
		switch command {
		case "query-status":
			result = `{"running": true, "status": "running"}`
			if g.Quiesced() {
				result = `{"running": false, "status": "paused"}`
			}
		case "stop":
			g.change(command, &g.paused, true)
		case "cont":
			g.change(command, &g.paused, false)
		}
		if len(id) == 0 {
			id = json.RawMessage("null")
		}
		fmt.Fprintf(conn, "{\"return\": %s, \"id\": %s}\n", result, id)
	})
}
