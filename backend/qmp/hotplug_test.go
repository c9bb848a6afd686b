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

// plugQEMU is a fake QEMU for hot-plugging, with one free root port.
type plugQEMU struct {
	fault map[string]string // by command: "hang", "drop", or the text of an error

	mu       sync.Mutex
	conn     net.Conn
	devices  map[string]string // type by id
	chardevs map[string]string // filename by label
	asked    []string
	deleting func(id string) // of device_del; nil: the device is gone at once
}

func newPlugQEMU(t *testing.T) (*plugQEMU, *Monitor) {
	q := &plugQEMU{fault: map[string]string{},
		devices: map[string]string{"port0": "pcie-root-port"}, chardevs: map[string]string{}}
	p := listen(t, q.serve)
	m := NewMonitor(MonitorOptions{Address: p.addr, Retry: 10 * time.Millisecond})
	t.Cleanup(func() { m.Close() })
	return q, m
}

func (q *plugQEMU) serve(conn net.Conn, in *bufio.Reader) {
	say(conn, greeting)
	q.mu.Lock()
	q.conn = conn
	q.mu.Unlock()
	for d := json.NewDecoder(in); ; {
		var r struct {
			Execute   string
			Arguments map[string]any
			ID        json.RawMessage
		}
		if d.Decode(&r) != nil {
			return
		}
		q.mu.Lock()
		reply, err := q.execute(r.Execute, r.Arguments)
		fault := q.fault[r.Execute]
		q.mu.Unlock()
		if fault != "" && fault != "hang" && fault != "drop" {
			err = errors.New(fault)
		}
		var id string
		if r.ID != nil {
			id = fmt.Sprintf(`, "id": %s`, r.ID)
		}
		switch {
		case fault == "hang":
			continue
		case fault == "drop":
			return
		case err != nil:
			say(conn, `{"error": {"class": "GenericError", "desc": %q}%s}`, err, id)
		default:
			text, _ := json.Marshal(reply)
			say(conn, `{"return": %s%s}`, text, id)
		}
	}
}

// execute runs with mu held.
func (q *plugQEMU) execute(command string, args map[string]any) (any, error) {
	q.asked = append(q.asked, command)
	str := func(name string) string { s, _ := args[name].(string); return s }
	var list []property
	switch command {
	case "query-version":
		return json.RawMessage(`{"qemu": {"major": 7, "minor": 2, "micro": 22}}`), nil
	case "query-memdev":
		return json.RawMessage(`[{"id": "mem", "share": true}]`), nil
	case "query-chardev":
		files := []map[string]string{}
		for label, file := range q.chardevs {
			files = append(files, map[string]string{"label": label, "filename": file})
		}
		return files, nil
	case "qom-list":
		switch str("path") {
		case peripheral:
			for id, kind := range q.devices {
				list = append(list, property{id, "child<" + kind + ">"})
			}
		case peripheral + "/port0/port0":
			if len(q.devices) > 1 {
				list = append(list, property{"child[0]", "link<vhost-user-blk-pci>"})
			}
		}
		return append(list, property{"type", "string"}), nil
	case "qom-get":
		switch str("property") {
		case "memory-backend":
			return "/objects/mem", nil
		case "type":
			return "memory-backend-memfd", nil
		case "chardev":
			return "sock-a", nil
		}
		return nil, errors.New("no such property")
	case "chardev-add":
		q.chardevs[str("id")] = "unix:"
	case "chardev-remove":
		if _, ok := q.chardevs[str("id")]; !ok {
			return nil, errors.New("Chardev 'x' not found")
		}
		if q.devices["disk-a"] != "" {
			return nil, errors.New("Chardev 'x' is busy")
		}
		delete(q.chardevs, str("id"))
	case "device_add":
		if q.fault[command] == "" {
			q.devices[str("id")] = "vhost-user-blk-pci"
		}
	case "device_del":
		if q.deleting == nil {
			delete(q.devices, str("id"))
			say(q.conn, `{"event": "DEVICE_DELETED", "data": {"path": "/x/virtio-backend"}}`)
			say(q.conn, `{"event": "DEVICE_DELETED", "data": {"device": %q, "path": "/x"}}`,
				str("id"))
		} else {
			q.deleting(str("id"))
		}
	}
	return struct{}{}, nil
}

func (q *plugQEMU) left() string {
	q.mu.Lock()
	defer q.mu.Unlock()
	return fmt.Sprint(len(q.devices)-1, " devices, ", len(q.chardevs), " chardevs")
}

func (q *plugQEMU) locked(f func()) {
	q.mu.Lock()
	defer q.mu.Unlock()
	f()
}

func (q *plugQEMU) commands() []string {
	q.mu.Lock()
	defer q.mu.Unlock()
	return slices.Clone(q.asked)
}

var plugA = Plug{Disk: "a", Socket: "/run/a.sock"}

func TestPlugAndUnplug(t *testing.T) {
	text := test.Texts(t, "hotplug.texts")
	q, m := newPlugQEMU(t)
	for range 3 {
		made, err := Attach(within(t, waitTimeout), m, plugA)
		if err != nil || *made != (Plugged{"disk-a", "sock-a", "port0"}) {
			t.Fatalf("%+v, %v", made, err)
		}
		_, err = Attach(within(t, waitTimeout), m, Plug{Disk: "b"})
		text(t, "a second disk in one port", err)
		test.Must(t, Detach(within(t, waitTimeout), m, "a", ""))
	}
	if q.left() != "0 devices, 0 chardevs" {
		t.Error(q.left())
	}
	var e *control.Error
	if err := Detach(within(t, waitTimeout), m, "a", ""); !errors.As(err, &e) ||
		e.Class != control.DeviceNotFound {
		t.Errorf("detach of nothing: %v", err)
	}
	if asked := q.commands(); slices.Contains(asked[len(asked)-3:], "device_del") {
		t.Errorf("asked for %v", asked)
	}
}

// After any failure nothing is left, and the error names it.
func TestPlugUndone(t *testing.T) {
	for _, command := range []string{"query-version", "query-memdev", "query-chardev",
		"chardev-add", "device_add"} {
		q, m := newPlugQEMU(t)
		q.locked(func() { q.fault[command] = "injected" })
		var injected *link.Error
		if _, err := Attach(within(t, waitTimeout), m, plugA); !errors.As(err, &injected) {
			t.Errorf("%s fails: %v", command, err)
		}
		if command != "chardev-add" && q.left() != "0 devices, 0 chardevs" {
			t.Errorf("%s fails: %s", command, q.left())
		}
		m.Close()
	}
}

// QEMU answers device_add late, or dies: the time limit holds, and what was added is removed as
// soon as possible.
func TestPlugIntoSlowQEMU(t *testing.T) {
	for _, fault := range []string{"hang", "drop"} {
		q, m := newPlugQEMU(t)
		q.locked(func() { q.fault["device_add"] = fault })
		_, err := Attach(within(t, 500*time.Millisecond), m, plugA)
		want := error(context.DeadlineExceeded)
		if fault == "drop" {
			want = ErrDisconnected
		}
		if !errors.Is(err, want) || q.left() != "0 devices, 0 chardevs" {
			t.Errorf("%s: %v, %s", fault, err, q.left())
		}
		m.Close()
	}
}

func TestPlugSocketOutOfReach(t *testing.T) {
	q, m := newPlugQEMU(t)
	q.locked(func() { q.chardevs["sock-a"] = "disconnected:unix:" }) // with a stale chardev
	lame := unconnectedRunner{m}
	_, err := Attach(within(t, 300*time.Millisecond), lame, plugA)
	if test.Texts(t, "hotplug.texts")(t, "socket out of reach",
		err); q.left() != "0 devices, 0 chardevs" {
		t.Error(q.left())
	}
	if slices.Contains(q.commands(), "device_add") {
		t.Error("QEMU was sent into a wait without end")
	}
}

// unconnectedRunner reports every chardev as not connected.
type unconnectedRunner struct{ Runner }

func (l unconnectedRunner) Run(ctx context.Context, command string, args, out any) error {
	err := l.Runner.Run(ctx, command, args, out)
	if command == "query-chardev" && err == nil {
		return json.Unmarshal(
			[]byte(`[{"label": "sock-a", "filename": "disconnected:unix:/run/a.sock"}]`), out)
	}
	return err
}

func TestUnplugGuestsWay(t *testing.T) {
	text := test.Texts(t, "hotplug.texts")
	for name, c := range map[string]struct {
		deleting func(q *plugQEMU, id string)
		limit    time.Duration
	}{
		"refuses": {func(q *plugQEMU, id string) {
			say(q.conn, `{"event": "DEVICE_UNPLUG_GUEST_ERROR", "data": {"device": %q, "path": "/x"}}`, id)
		}, waitTimeout},
		"silent": {func(*plugQEMU, string) {}, 300 * time.Millisecond},
		"another": {func(q *plugQEMU, _ string) {
			say(q.conn, `{"event": "DEVICE_DELETED", "data": {"device": "other"}}`)
		}, 300 * time.Millisecond},
		// The event is lost while the monitor reconnects.
		"unseen": {func(q *plugQEMU, id string) { delete(q.devices, id) }, waitTimeout},
	} {
		t.Run(name, func(t *testing.T) {
			q, m := newPlugQEMU(t)
			test.Must(t, test.Err(Attach(within(t, waitTimeout), m, plugA)))
			q.locked(func() { q.deleting = func(id string) { c.deleting(q, id) } })
			err := Detach(within(t, c.limit), m, "a", "")
			left := "1 devices, 1 chardevs"
			if name == "unseen" {
				left = "0 devices, 0 chardevs"
			}
			if text(t, name, err); (err == nil) != (name == "unseen") || q.left() != left {
				t.Errorf("%v, %s", err, q.left())
			}
		})
	}
}

func TestAddressSame(t *testing.T) {
	p := listen(t, func(net.Conn, *bufio.Reader) {})
	other := Address{Path: p.addr.Path + "/../s"}
	dir := strings.TrimSuffix(p.addr.Path, "/s")
	for _, c := range []struct {
		b    Address
		same bool
	}{
		{p.addr, true}, {Address{Path: dir + "/./s"}, true}, {other, false},
		{Address{CID: 1, Port: 2}, false}, {Address{Path: dir}, false},
	} {
		if got := p.addr.Same(c.b); got != c.same {
			t.Errorf("%s and %s: %v", p.addr, c.b, got)
		}
	}
}
