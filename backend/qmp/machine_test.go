package qmp

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"
)

// machine is a fake QEMU. Its state outlives connections.
type machine struct {
	mu    sync.Mutex
	state string
	log   []string
	uses  map[string]int
	fault func(command string, use int) string
	conn  net.Conn // the client's, to send events to
	bad   string   // sent instead of the greeting
}

func newMachine(t *testing.T) (*machine, *peer) {
	m := &machine{state: "running", uses: make(map[string]int)}
	return m, listen(t, m.serve)
}

func (m *machine) emit(format string, args ...any) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.conn != nil {
		say(m.conn, format, args...)
	}
}

func (m *machine) serve(conn net.Conn, in *bufio.Reader) {
	m.mu.Lock()
	bad := m.bad
	m.mu.Unlock()
	if bad != "" {
		say(conn, "%s", bad)
		in.ReadByte()
		return
	}
	say(conn, greeting)
	for d := json.NewDecoder(in); ; {
		var r struct {
			Execute   string
			Arguments json.RawMessage
			ID        json.RawMessage
		}
		if d.Decode(&r) != nil {
			break
		}
		if !m.execute(conn, in, r.Execute, r.ID) {
			break
		}
	}
	m.mu.Lock()
	m.conn = nil
	m.mu.Unlock()
}

func (m *machine) execute(conn net.Conn, in *bufio.Reader, command string,
	id json.RawMessage) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.conn = conn
	if len(id) == 0 {
		id = json.RawMessage("null")
	}
	fault := ""
	if m.fault != nil {
		fault = m.fault(command, m.uses[command])
	}
	m.uses[command]++
	m.log = append(m.log, command)
	switch fault {
	case "hang":
		m.mu.Unlock()
		for buf := make([]byte, 64); ; {
			if _, err := conn.Read(buf); err != nil {
				break
			}
		}
		m.mu.Lock()
		return false
	case "drop":
		return false
	case "garbage":
		say(conn, "}{ not json")
		return true
	case "error":
		say(conn, `{"id": %s, "error": {"class": "GenericError", "desc": "injected"}}`, id)
		return true
	}
	reply := "{}"
	switch command {
	case "query-status":
		reply = fmt.Sprintf(`{"status": %q, "running": %v}`, m.state, m.state == "running")
	case "stop":
		if m.state == "running" {
			m.state = "paused"
			say(conn, `{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "STOP"}`)
		}
	case "cont":
		m.state = "running"
	case "qmp_capabilities", "noop":
	default:
		say(conn, `{"id": %s, "error": {"class": "CommandNotFound", "desc": "The command %s has not been found"}}`, id, command)
		return true
	}
	if string(id) == "null" {
		reply = fmt.Sprintf(`{"return": %s}`, reply)
	} else {
		reply = fmt.Sprintf(`{"return": %s, "id": %s}`, reply, id)
	}
	switch fault {
	case "mute":
		return true
	case "half":
		fmt.Fprint(conn, reply[:len(reply)/2])
		return false
	case "late":
		m.mu.Unlock()
		time.Sleep(50 * time.Millisecond)
		m.mu.Lock()
	}
	say(conn, "%s", reply)
	return true
}

func (m *machine) status() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.state
}

func monitor(t *testing.T, a Address) *Monitor {
	m := NewMonitor(MonitorOptions{Address: a, Timeout: 2 * time.Second,
		Retry: 100 * time.Millisecond, Queue: 8})
	t.Cleanup(func() { m.Close() })
	return m
}
