package daemon

import (
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"cowblk/backend/backendtest"
	"cowblk/backend/qmp"
	"cowblk/cow/store"
	"cowblk/internal/test"
	"cowblk/vhost/frontend"
)

// hasRecord reports whether the store has a record that the guest of disk "a" is quiesced.
func hasRecord(t testing.TB, st *store.Store) bool {
	t.Helper()
	noted, err := st.QuiesceRecord("a", &qmp.Spec{})
	test.Must(t, err)
	return noted
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
			st := newStore(t, nil, "a")
			g := backendtest.NewGuest(t, t.TempDir())
			d := start(t, st, Options{}, "a")
			f := d.dial("a", frontend.Options{})
			hanging, resume := g.Hangs(c.when, c.command)
			t.Cleanup(resume)
			args := PromoteArgs{Disks: []string{"a"}, Tag: "t", Spec: g.Spec(c.mode), Timeout: 0.3}
			var err error
			promotion := test.Go(func() error {
				_, err = d.promote(t.Context(), args, "")
				return nil
			})
			<-hanging
			test.Must(t, backendtest.Write(f.Driver(0), 1, 0)())
			wantAt(t, f, 1, 0)
			test.Must(t, f.Driver(0).Flush())
			promotion.Must(t)
			if !errors.Is(err, qmp.ErrNotThawed) || errors.Is(err, errPromoted) != c.promoted {
				t.Errorf("the promotion: %v", err)
			}
			if made := len(d.manifests.Tags("a")) == 1; made != c.promoted {
				t.Errorf("promoted: %v, expected %v", made, c.promoted)
			}
			// Promotions that do not need the guest work.
			_, err = d.promote(t.Context(), PromoteArgs{Disks: []string{"a"}, Tag: "t2"}, "")
			test.Must(t, err)
			resume()
			test.Eventually(t, "the guest continues, without a record",
				func() bool { return !g.Quiesced() && !hasRecord(t, st) })
			args.Tag, args.Timeout = "t3", 10
			test.Check(t, test.Err(d.promote(t.Context(), args, "")), "the next promotion")
		})
	}
}

// A process that is told to end while the agent hangs ends within the promotion's time limit. The
// next process thaws the guest.
func TestStopWhileTheAgentHangs(t *testing.T) {
	st := newStore(t, nil, "a")
	g := backendtest.NewGuest(t, t.TempDir())
	d := start(t, st, Options{}, "a")
	test.Must(t, backendtest.Write(d.dial("a", frontend.Options{}).Driver(0), 1, 0)())
	hanging, resume := g.Hangs("after", "guest-fsfreeze-freeze")
	t.Cleanup(resume)
	go d.control().Run(t.Context(), "cow-promote", PromoteArgs{Disks: []string{"a"}, Tag: "t",
		Spec: g.Spec(qmp.QuiesceGuest), Timeout: 0.5}, nil)
	<-hanging
	d.end()
	if !g.Quiesced() {
		t.Error("the agent let the guest go although it hangs")
	}
	d = start(t, st, Options{}, "a")
	// served while the guest is frozen, which may need its disk to thaw
	wantAt(t, d.dial("a", frontend.Options{}), 1, 0)
	resume()
	test.Eventually(t, "the guest continues", func() bool { return !g.Quiesced() })
}

// Peers that are not QEMU, or that send garbage: memory and log are bounded, and the disk is served
// and promoted.
func TestGarbageFromMonitors(t *testing.T) {
	const greeting = `{"QMP": {"version": {"qemu": {"micro": 2, "minor": 0, "major": 10}, "package": ""}, "capabilities": []}}` + "\n"
	flood := strings.Repeat(`{"event": "STOP", "timestamp": {"seconds": 1, "microseconds": 2}}`+
		"\n", 100) +
		strings.Repeat(`{"event": "NIC_RX_FILTER_CHANGED", "timestamp": {"seconds": 1, "microseconds": 2}}`+"\n", 100)
	for name, talk := range map[string]func(net.Conn) error{
		"never greets": func(net.Conn) error { return nil },
		"half a greeting": func(c net.Conn) error {
			_, err := fmt.Fprint(c, greeting[:30])
			return err
		},
		"greets only": func(c net.Conn) error {
			_, err := fmt.Fprint(c, greeting)
			return err
		},
		"a line of no end": func(c net.Conn) error {
			return forever(c, strings.Repeat("x", 1<<16))
		},
		"newlines only": func(c net.Conn) error {
			return forever(c, strings.Repeat("\n", 1<<12))
		},
		"another protocol": func(c net.Conn) error { return forever(c, "SSH-2.0-x\r\n") },
		"flood of events": func(c net.Conn) error {
			fmt.Fprint(c, greeting+`{"return": {}}`+"\n")
			return forever(c, flood)
		},
		"hangs up at once": func(c net.Conn) error { return c.Close() },
		"half an event": func(c net.Conn) error {
			fmt.Fprint(c, greeting+`{"return": {}}`+"\n"+flood[:30])
			return nil
		},
		"replies to nobody": func(c net.Conn) error {
			fmt.Fprint(c, greeting)
			return forever(c, `{"return": {}, "id": 7}`+"\n")
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			at := filepath.Join(t.TempDir(), "qmp")
			l, err := net.Listen("unix", at)
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
			d := start(t, newStore(t, nil, "a"),
				Options{Hooks: HookOptions{QMP: &qmp.Address{Path: at}, Events: []string{"STOP"}}},
				"a")
			f := d.dial("a", frontend.Options{})
			<-met
			for i := range byte(50) {
				test.Must(t, backendtest.Write(f.Driver(0), i+1, int64(i)*4096)())
			}
			spec := qmp.Spec{Mode: qmp.QuiescePause, QMP: "unix:" + at}
			if _, err := d.promote(t.Context(), PromoteArgs{Disks: []string{"a"}, Tag: "p",
				Spec: spec, Timeout: 0.2}, ""); err == nil {
				t.Error("a promotion that pauses the guest has succeeded")
			}
			_, err = d.promote(t.Context(), PromoteArgs{Disks: []string{"a"}, Tag: "q"}, "")
			test.Must(t, err)
			for i := range byte(50) {
				wantAt(t, f, i+1, int64(i)*4096)
			}
			d.end()
			if n := len(d.log.Records()); n > 40 {
				t.Errorf("%d lines of log, the first: %.2000s", n, d.log)
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
