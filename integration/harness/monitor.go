package harness

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"github.com/digitalocean/go-qemu/qmp"
)

// Monitor is a QMP connection that queues every event until Event returns it.
type Monitor struct {
	mon   *qmp.SocketMonitor
	ended chan struct{} // closed when the event goroutine has ended

	mu      sync.Mutex
	events  []qmp.Event // not yet returned by Event
	changed chan struct{}
}

// dialPause is the interval between attempts to connect to a socket that a process is about to
// create.
const dialPause = 20 * time.Millisecond

// DialMonitor connects to the monitor at a UNIX socket. Until ctx ends it waits for the socket to
// appear.
func DialMonitor(ctx context.Context, path string) (*Monitor, error) {
	for {
		mon, err := qmp.NewSocketMonitor("unix", path, 10*time.Second)
		if err == nil {
			if err = mon.Connect(); err == nil {
				return newMonitor(mon)
			}
			_ = mon.Disconnect()
		}
		select {
		case <-time.After(dialPause):
		case <-ctx.Done():
			return nil, fmt.Errorf("monitor %s: %w (last try: %w)", path, context.Cause(ctx), err)
		}
	}
}

func newMonitor(mon *qmp.SocketMonitor) (*Monitor, error) {
	events, err := mon.Events(context.Background())
	if err != nil {
		return nil, err
	}
	m := &Monitor{mon: mon, ended: make(chan struct{}), changed: make(chan struct{})}
	go func() {
		defer close(m.ended)
		for e := range events {
			m.mu.Lock()
			m.events = append(m.events, e)
			close(m.changed)
			m.changed = make(chan struct{})
			m.mu.Unlock()
		}
	}()
	return m, nil
}

// Run executes one command and decodes its return value into out, unless out is nil.
func (m *Monitor) Run(command string, args map[string]any, out any) error {
	request := qmp.Command{Execute: command}
	if args != nil {
		request.Args = args // a nil map would be encoded as null, which QEMU refuses
	}
	line, err := json.Marshal(request)
	if err != nil {
		return err
	}
	reply, err := m.mon.Run(line)
	if err != nil {
		return fmt.Errorf("QMP %s: %w", command, err)
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(reply, &struct{ Return any }{out}); err != nil {
		return fmt.Errorf("QMP %s: reply %s: %w", command, reply, err)
	}
	return nil
}

// Event waits for the next event of that name whose data contains want. It drops that event and all
// earlier ones from the queue.
func (m *Monitor) Event(ctx context.Context, name string, want map[string]any) (qmp.Event, error) {
	for {
		m.mu.Lock()
		for i, e := range m.events {
			if e.Event == name && contains(e.Data, want) {
				m.events = m.events[i+1:]
				m.mu.Unlock()
				return e, nil
			}
		}
		changed := m.changed
		m.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return qmp.Event{}, fmt.Errorf("waiting for QMP event %s %v: %w", name, want,
				context.Cause(ctx))
		}
	}
}

func contains(data, want map[string]any) bool {
	for k, v := range want {
		if data[k] != v {
			return false
		}
	}
	return true
}

// Close disconnects and waits for the monitor's goroutine.
func (m *Monitor) Close() {
	_ = m.mon.Disconnect() // QEMU may have closed its end already
	<-m.ended
}
