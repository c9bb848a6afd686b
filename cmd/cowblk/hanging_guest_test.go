package main

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"cowblk/backend/control"
	"cowblk/backend/daemon"
	"cowblk/backend/qmp"
	"cowblk/cow/store"
	"cowblk/internal/test"
)

// hangs makes the guest's agent or monitor hang once, at a command, until resume.
func (g *fakeGuest) hangs(when, command string) (hanging <-chan struct{}, resume func()) {
	caught, open := make(chan struct{}), make(chan struct{})
	var once, release sync.Once
	g.setHook(func(w, c string) {
		if w == when && c == command {
			once.Do(func() { close(caught); <-open })
		}
	})
	return caught, func() { release.Do(func() { close(open) }) }
}

// The guest agent or QEMU's monitor hangs during a quiesced promotion, before or after it executed
// a command. The guest's requests are served meanwhile. The promotion ends after its time limit,
// complete or without effect, and reports which. As soon as the agent answers, the guest is thawed
// automatically.
func TestGuestHangsDuringPromotion(t *testing.T) {
	for _, c := range []struct {
		mode, when, command string
		promoted            bool
	}{
		{qmp.QuiesceGuest, "before", "guest-fsfreeze-freeze", false},
		{qmp.QuiesceGuest, "after", "guest-fsfreeze-freeze", false},
		{qmp.QuiesceGuest, "before", "guest-fsfreeze-thaw", true},
		{qmp.QuiesceGuest, "after", "guest-fsfreeze-thaw", true},
		{qmp.QuiescePause, "before", "stop", false},
		{qmp.QuiescePause, "after", "stop", false},
		{qmp.QuiescePause, "before", "cont", true},
		{qmp.QuiescePause, "after", "cont", true},
	} {
		t.Run(c.when+" "+c.command, func(t *testing.T) {
			t.Parallel()
			dir := storeWith(t, "1M", "a")
			g := newFakeGuest(t, dir)
			p, f := startServing(t, dir, "a")
			ctl, err := control.Dial(filepath.Join(dir, "run", "a.ctl"), 5*time.Second)
			test.Must(t, err)
			hanging, resume := g.hangs(c.when, c.command)
			t.Cleanup(resume)
			args := daemon.PromoteArgs{Disks: []string{"a"}, Tag: "t", Spec: g.spec(c.mode), Timeout: 0.3}
			answer := make(chan error, 1)
			go func() { answer <- ctl.Run(context.Background(), "cow-promote", args, nil) }()
			<-hanging
			writeAt(t, f, 0, pattern(1, 4096))
			wantAt(t, f, 0, pattern(1, 4096))
			test.Check(t, f.Driver(0).Flush())
			err = <-answer
			if err == nil || !strings.Contains(err.Error(), "could not be thawed") || strings.Contains(err.Error(), "are promoted") != c.promoted {
				t.Errorf("the promotion: %v", err)
			}
			test.Equal(t, strings.Contains(command(t, dir, "info", "a"), "@t "), c.promoted, "promoted")
			// Commands that do not need the guest work.
			if err := ctl.Run(context.Background(), "cow-promote", daemon.PromoteArgs{Disks: []string{"a"}, Tag: "t2"}, nil); err != nil {
				t.Errorf("a promotion without quiescing: %v", err)
			}
			wantAt(t, f, 0, pattern(1, 4096))

			resume()
			s, err := store.Open(dir, store.Options{})
			test.Must(t, err)
			test.Eventually(t, "the guest is thawed, and its record is gone", func() bool {
				noted, err := s.QuiesceRecord("a", &qmp.Spec{})
				test.Must(t, err)
				return !noted && !g.quiesced()
			}, &p.log)
			args.Tag, args.Timeout = "t3", 10
			test.Check(t, ctl.Run(context.Background(), "cow-promote", args, nil), "the next promotion")
			f.Close()
			p.end(t)
		})
	}
}

// A process that gets SIGTERM while the agent hangs ends within the promotion's time limit. The
// next process thaws the guest.
func TestStopWhileTheAgentHangs(t *testing.T) {
	dir := storeWith(t, "1M", "a")
	g := newFakeGuest(t, dir)
	p, f := startServing(t, dir, "a")
	writeAt(t, f, 0, pattern(1, 4096))
	ctl, err := control.Dial(filepath.Join(dir, "run", "a.ctl"), 5*time.Second)
	test.Must(t, err)
	hanging, resume := g.hangs("after", "guest-fsfreeze-freeze")
	t.Cleanup(resume)
	go ctl.Run(context.Background(), "cow-promote", daemon.PromoteArgs{Disks: []string{"a"}, Tag: "t", Spec: g.spec(qmp.QuiesceGuest), Timeout: 0.5}, nil)
	<-hanging
	test.Must(t, p.cmd.Process.Signal(syscall.SIGTERM))
	p.cmd.Wait() // the process ends
	if !g.quiesced() {
		t.Error("the agent let the guest go although it hangs")
	}
	p = start(t, dir, nil, "serve", "a")
	f = dial(t, filepath.Join(dir, "run", "a.sock")) // served while the guest is frozen, which may need its disk to thaw
	wantAt(t, f, 0, pattern(1, 4096))
	resume()
	test.Eventually(t, "the guest is thawed", func() bool { return !g.quiesced() }, &p.log)
	f.Close()
	p.end(t)
}

// Peers that are not QEMU, or that send garbage: memory and log are bounded, and the disk is served
// and promoted.
func TestGarbageFromMonitors(t *testing.T) {
	const greeting = `{"QMP": {"version": {"qemu": {"micro": 2, "minor": 0, "major": 10}, "package": ""}, "capabilities": []}}` + "\n"
	flood := strings.Repeat(`{"event": "STOP", "timestamp": {"seconds": 1, "microseconds": 2}}`+"\n", 100) +
		strings.Repeat(`{"event": "NIC_RX_FILTER_CHANGED", "timestamp": {"seconds": 1, "microseconds": 2}}`+"\n", 100)
	for name, talk := range map[string]func(net.Conn) error{
		"never greets":      func(net.Conn) error { return nil },
		"half a greeting":   func(c net.Conn) error { _, err := fmt.Fprint(c, greeting[:30]); return err },
		"greets only":       func(c net.Conn) error { _, err := fmt.Fprint(c, greeting); return err },
		"a line of no end":  func(c net.Conn) error { return forever(c, strings.Repeat("x", 1<<16)) },
		"newlines only":     func(c net.Conn) error { return forever(c, strings.Repeat("\n", 1<<12)) },
		"another protocol":  func(c net.Conn) error { return forever(c, "SSH-2.0-x\r\n") },
		"flood of events":   func(c net.Conn) error { fmt.Fprint(c, greeting+`{"return": {}}`+"\n"); return forever(c, flood) },
		"hangs up at once":  func(c net.Conn) error { return c.Close() },
		"half an event":     func(c net.Conn) error { fmt.Fprint(c, greeting+`{"return": {}}`+"\n"+flood[:30]); return nil },
		"replies to nobody": func(c net.Conn) error { fmt.Fprint(c, greeting); return forever(c, `{"return": {}, "id": 7}`+"\n") },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := storeWith(t, "1M", "a")
			l, err := net.Listen("unix", filepath.Join(dir, "qmp"))
			test.Must(t, err)
			var talks sync.WaitGroup
			met := make(chan struct{}, 1)
			talks.Go(func() {
				var conns []net.Conn
				for {
					c, err := l.Accept()
					if err != nil {
						for _, c := range conns {
							c.Close()
						}
						return
					}
					conns = append(conns, c)
					select {
					case met <- struct{}{}:
					default:
					}
					talks.Go(func() { talk(c) })
				}
			})
			t.Cleanup(talks.Wait)
			t.Cleanup(func() { l.Close() })
			p := start(t, dir, nil, "serve", "a", "--qmp", "unix:"+filepath.Join(dir, "qmp"), "--promote-on", "STOP")
			f := dial(t, filepath.Join(dir, "run", "a.sock"))
			<-met
			for i := range 50 {
				writeAt(t, f, int64(i)*4096, pattern(byte(i+1), 4096))
			}
			ctl, err := control.Dial(filepath.Join(dir, "run", "a.ctl"), 5*time.Second)
			test.Must(t, err)
			spec := qmp.Spec{Mode: qmp.QuiescePause, QMP: "unix:" + filepath.Join(dir, "qmp")}
			if err := ctl.Run(t.Context(), "cow-promote", daemon.PromoteArgs{Disks: []string{"a"}, Tag: "p", Spec: spec, Timeout: 0.2}, nil); err == nil {
				t.Error("a promotion that pauses the guest has succeeded")
			}
			test.Check(t, ctl.Run(t.Context(), "cow-promote", daemon.PromoteArgs{Disks: []string{"a"}, Tag: "q"}, nil))
			for i := range 50 {
				wantAt(t, f, int64(i)*4096, pattern(byte(i+1), 4096))
			}
			f.Close()
			p.end(t)
			if n := strings.Count(p.log.String(), "\n"); n > 40 {
				t.Errorf("%d lines of log, the first: %.2000s", n, p.log.String())
			}
		})
	}
}

// forever sends a text repeatedly.
func forever(c net.Conn, text string) error {
	for {
		if _, err := fmt.Fprint(c, text); err != nil {
			return err
		}
	}
}
