package qmp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/digitalocean/go-qemu/qmp"

	"cowblk/backend/control"
	"cowblk/backend/qmp/link"
	"cowblk/internal/test"
)

const greeting = `{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "fake"}, "capabilities": ["oob"]}}`

func TestMonitorRun(t *testing.T) {
	_, p := newMachine(t)
	m := monitor(t, p.addr)
	var s struct{ Status string }
	if err := m.Run(within(t, waitTimeout), "query-status", nil, &s); err != nil ||
		s.Status != "running" {
		t.Errorf("%+v, %v", s, err)
	}
	var e *control.Error
	if err := m.Run(context.Background(), "nothing", map[string]int{"a": 1}, nil); !errors.As(err,
		&e) || e.Class != control.CommandNotFound {
		t.Errorf("unknown command: %v", err)
	}
	if err := m.Run(context.Background(), "noop", func() {}, nil); err == nil {
		t.Error("arguments that JSON does not know were taken")
	}
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			test.Check(t, m.Run(context.Background(), "noop", nil, nil))
		})
	}
	wg.Wait()
	m.Close()
	test.ErrorIs(t, m.Run(context.Background(), "noop", nil, nil), ErrClosed, "after Close")
}

// A late reply is not taken for that of the next command.
func TestMonitorLateReply(t *testing.T) {
	f, p := newMachine(t)
	f.fault = func(c string, _ int) string {
		if c == "noop" {
			return "late"
		}
		return ""
	}
	m := monitor(t, p.addr)
	test.Must(t, m.Run(within(t, waitTimeout), "query-status", nil, nil))
	test.ErrorIs(t, m.Run(within(t, 5*time.Millisecond), "noop", nil, nil),
		context.DeadlineExceeded)
	var s struct{ Status string }
	if err := m.Run(within(t, waitTimeout), "query-status", nil, &s); err != nil ||
		s.Status != "running" {
		t.Errorf("%+v, %v", s, err)
	}
}

func TestMonitorReconnects(t *testing.T) {
	f, p := newMachine(t)
	m := monitor(t, p.addr)
	sub := m.Subscribe("SHUTDOWN")
	for i := range 3 {
		test.Eventually(t, "a connection that works", func() bool {
			return m.Run(within(t, waitTimeout), "noop", nil, nil) == nil
		})
		f.emit(`{"event": "SHUTDOWN", "data": {"n": %d}, "timestamp": {"seconds": 1, "microseconds": 2}}`, i)
		if e := <-sub.C; e.Data["n"] != float64(i) {
			t.Errorf("event %+v", e)
		}
		p.stop()
		if err := m.Run(within(t, 50*time.Millisecond), "noop", nil, nil); err == nil {
			t.Error("a command succeeded without QEMU")
		}
		p.start(f.serve)
	}
	m.Close()
	if _, ok := <-sub.C; ok {
		t.Error("the subscription outlived the monitor")
	}
	if _, ok := <-m.Subscribe().C; ok {
		t.Error("a subscription to a closed monitor is open")
	}
}

// If no subscriber receives events, commands still run, and dropped events are counted.
func TestMonitorEventsNeverBlock(t *testing.T) {
	f, p := newMachine(t)
	m := monitor(t, p.addr)
	sub, other := m.Subscribe(), m.Subscribe("OTHER")
	test.Must(t, m.Run(within(t, waitTimeout), "noop", nil, nil))
	for i := range 100 {
		f.emit(`{"event": "NOISE", "data": {"n": %d}, "timestamp": {"seconds": 1, "microseconds": 2}}`, i)
	}
	test.Must(t, m.Run(within(t, waitTimeout), "noop", nil, nil))
	if lost := sub.Lost(); lost != 100-8 || other.Lost() != 0 {
		t.Errorf("%d and %d lost, want 92 and 0", lost, other.Lost())
	}
	for i := range 8 {
		if e := <-sub.C; e.Data["n"] != float64(i) {
			t.Errorf("event %d: %+v", i, e)
		}
	}
	other.Close()
	other.Close()
	if _, ok := <-other.C; ok {
		t.Error("open after Close")
	}
}

func TestMonitorOddPeers(t *testing.T) {
	for name, bad := range map[string]string{
		"no greeting": `{"event": "NOPE"}`, "not json": "SSH-2.0-x", "too long": strings.Repeat("x",
			link.MaxLine+1),
	} {
		t.Run(name, func(t *testing.T) {
			f, p := newMachine(t)
			f.mu.Lock()
			f.bad = bad
			f.mu.Unlock()
			m := monitor(t, p.addr)
			test.ErrorIs(t, m.Run(within(t, 300*time.Millisecond), "noop", nil, nil),
				context.DeadlineExceeded)
			f.mu.Lock()
			f.bad = ""
			f.mu.Unlock()
			test.Check(t, m.Run(within(t, waitTimeout), "noop", nil, nil), "once it is a QEMU")
		})
	}
}

// TestPauseFaults enumerates the faults of the first and the second use of every command. After
// each the guest runs, and WhileQuiesced calls f only while it is stopped.
func TestPauseFaults(t *testing.T) {
	for _, command := range []string{"query-status", "stop", "cont"} {
		for _, fault := range []string{"hang", "drop", "error", "garbage", "mute", "half", "late"} {
			for use := range 2 {
				t.Run(fmt.Sprintf("%s/%s/%d", command, fault, use), func(t *testing.T) {
					f, p := newMachine(t)
					f.fault = func(c string, n int) string {
						if c == command && n == use {
							return fault
						}
						return ""
					}
					m := monitor(t, p.addr)
					if fault == "hang" {
						// A QEMU that hangs for ever cannot be tested here; one that comes back
						// can.
						defer time.AfterFunc(400*time.Millisecond,
							func() { p.stop(); p.start(f.serve) }).Stop()
					}
					called := false
					err := WhileQuiesced(context.Background(), NewPause(m),
						freezeTime(command == "cont"), thawTime, func(context.Context) error {
							called = true
							test.Equal(t, f.status(), "paused", "f was called while the guest was")
							return nil
						})
					if s := f.status(); s != "running" {
						t.Errorf("the guest is %s, after %v", s, f.log)
					}
					if errors.Is(err, ErrNotThawed) || (err == nil) != called {
						t.Errorf("f called: %v, error: %v", called, err)
					}
				})
			}
		}
	}
}

// A guest that was not running is not continued.
func TestPauseLeavesOthersAlone(t *testing.T) {
	for _, state := range []string{"paused", "shutdown", "guest-panicked", "prelaunch",
		"inmigrate"} {
		t.Run(state, func(t *testing.T) {
			f, p := newMachine(t)
			f.state = state
			m := monitor(t, p.addr)
			q := NewPause(m)
			test.Check(t, WhileQuiesced(context.Background(), q, waitTimeout, waitTimeout,
				func(context.Context) error { return nil }))
			if s := f.status(); s != state {
				t.Errorf("the guest is %s now", s)
			}
			test.Check(t, q.ForceThaw(within(t, waitTimeout)))
			want := state
			if state == "paused" {
				want = "running"
			}
			test.Equal(t, f.status(), want, "after Resume the guest")
		})
	}
}

// TestRealQEMU runs the monitor against a QEMU that ends and restarts.
func TestRealQEMU(t *testing.T) {
	test.NoLeaks(t)
	addr := Address{Path: filepath.Join(t.TempDir(), "qmp")}
	m := NewMonitor(MonitorOptions{Address: addr, Retry: 200 * time.Millisecond})
	defer m.Close()
	events := m.Subscribe("STOP", "RESUME")
	ctx := within(t, 2*waitTimeout)
	for range 2 {
		stop := runQEMU(t, addr)
		q := NewPause(m)
		// The end of the last QEMU may not have been detected yet.
		test.Eventually(t, "a connection that works",
			func() bool { return m.Run(ctx, "query-status", nil, nil) == nil })
		test.Must(t, m.Run(ctx, "cont", nil, nil))
		if e := <-events.C; e.Event != "RESUME" || e.Timestamp.Seconds == 0 {
			t.Errorf("got %+v, want RESUME", e)
		}
		err := WhileQuiesced(ctx, q, waitTimeout, waitTimeout, func(ctx context.Context) error {
			if running, state, err := q.status(ctx); running || state != "paused" || err != nil {
				t.Errorf("in between: running %v, %s, %v", running, state, err)
			}
			return nil
		})
		test.Check(t, err)
		if running, state, err := q.status(ctx); !running || err != nil {
			t.Errorf("afterwards: %s, %v", state, err)
		}
		for _, want := range []string{"STOP", "RESUME"} {
			if e := <-events.C; e.Event != want {
				t.Errorf("got %+v, want %s", e, want)
			}
		}
		// Longer than 64 KiB, the limit of go-qemu's SocketMonitor.
		var schema []json.RawMessage
		if err := m.Run(ctx, "query-qmp-schema", nil, &schema); err != nil || len(schema) < 100 {
			t.Errorf("schema of %d entries, %v", len(schema), err)
		}
		var e *control.Error
		if err := m.Run(ctx, "device_del", map[string]string{"id": "none"}, nil); !errors.As(err,
			&e) || e.Class != control.DeviceNotFound {
			t.Errorf("device_del: %#v", err)
		}
		stop()
	}
}

// runQEMU starts a stopped machine without a guest and returns a function that ends it.
func runQEMU(t *testing.T, addr Address) (stop func()) {
	t.Helper()
	cmd := exec.Command("qemu-system-x86_64", "-S", "-display", "none", "-nodefaults", "-machine",
		"none",
		"-qmp", "unix:"+addr.Path+",server=on,wait=off")
	cmd.Stderr = os.Stderr
	test.Must(t, cmd.Start())
	stop = sync.OnceFunc(func() { cmd.Process.Kill(); cmd.Wait() })
	t.Cleanup(stop)
	return stop
}

// TestGoQEMU pauses through go-qemu's SocketMonitor.
func TestGoQEMU(t *testing.T) {
	f, p := newMachine(t)
	mon, err := qmp.NewSocketMonitor("unix", p.addr.Path, waitTimeout)
	test.Must(t, err)
	test.Must(t, mon.Connect())
	defer mon.Disconnect()
	q := NewPause(GoQEMU(mon))
	if err := q.Freeze(within(t, waitTimeout)); err != nil || f.status() != "paused" {
		t.Errorf("Freeze: %v, %s", err, f.status())
	}
	if err := q.Thaw(within(t, waitTimeout)); err != nil || f.status() != "running" {
		t.Errorf("Thaw: %v, %s", err, f.status())
	}
	test.Texts(t, "agent.texts")(t, "command unknown to QEMU",
		GoQEMU(mon).Run(within(t, waitTimeout), "nothing", nil, nil))
	f.mu.Lock()
	f.fault = func(string, int) string { return "hang" }
	f.mu.Unlock()
	test.ErrorIs(t, GoQEMU(mon).Run(within(t, 50*time.Millisecond), "noop", nil, nil),
		context.DeadlineExceeded, "a peer that hangs")
}

// shortReply is a monitor that fails as go-libvirt does when the connection is lost.
type shortReply struct{ qmp.Monitor }

func (shortReply) Run([]byte) ([]byte, error) { var none []byte; return none[4:], nil }

func TestGoQEMUShortReply(t *testing.T) {
	test.ErrorIs(t, GoQEMU(shortReply{}).Run(within(t, waitTimeout), "stop", nil, nil),
		ErrDisconnected)
}
