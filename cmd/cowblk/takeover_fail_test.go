package main

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"cowblk/backend/control"
	"cowblk/backend/takeover"
	"cowblk/cow"
	"cowblk/cow/store"
	"cowblk/internal/test"
)

// request requests a takeover of disk a.
func request(t *testing.T, dir string, disks ...string) *takeover.Offer {
	t.Helper()
	o, err := takeover.Request(context.Background(), filepath.Join(dir, "run", "a.ctl"), disks)
	test.Must(t, err)
	return o
}

// However and whenever the new process fails, the old one continues, with its unflushed data.
func TestTakeoverThatFails(t *testing.T) {
	dir := storeWith(t, "1G", "a")
	p := start(t, dir, nil, "serve", "a")
	l := newLoad(t, filepath.Join(dir, "run", "a.sock"), 16<<10)
	l.waitRequests(2000)
	for name, fail := range map[string]func(o *takeover.Offer){
		"gone before go": func(o *takeover.Offer) {},
		"gone after go": func(o *takeover.Offer) {
			r, err := o.AwaitDetach(t.Context())
			test.Check(t, err)
			r.Close()
		},
		"failed": func(o *takeover.Offer) {
			r, err := o.AwaitDetach(t.Context())
			test.Check(t, err)
			r.Close()
			test.Check(t, o.Abort(errors.New("of no use")))
		},
		"opened and closed": func(o *takeover.Offer) {
			r, err := o.AwaitDetach(t.Context())
			if err != nil {
				t.Error(err)
				return
			}
			defer r.Close()
			st, err := store.Open(dir, store.Options{})
			if err != nil {
				t.Error(err)
				return
			}
			opened, err := st.OpenDisk(t.Context(), "a", store.OpenOptions{Serve: true,
				Cow: cow.Options{Log: testLog(t)}})
			if err != nil {
				t.Error(err)
				return
			}
			test.Check(t, opened.Close())
		},
	} {
		l.waitRequests(1000)
		o := request(t, dir, "a")
		fail(o)
		o.Close()
		l.waitRequests(1000)
		var disks []any
		c, err := control.Dial(filepath.Join(dir, "run", "a.ctl"), 0)
		if err == nil {
			err = c.Run(t.Context(), "query-cow-disks", nil, &disks)
		}
		if err != nil || len(disks) != 1 {
			t.Errorf("%s: the control socket afterwards: %v, %v", name, disks, err)
		}
	}
	l.finish()
	p.end(t)
	if text := p.log.String(); strings.Count(text,
		"a takeover failed: this process continues") != 3 ||
		strings.Count(text, "a takeover was refused") != 1 {
		t.Errorf("log:\n%s", text)
	}
	q := start(t, dir, nil, "serve", "a", "--takeover") // not served: an ordinary start
	wantAt(t, dial(t, filepath.Join(dir, "run", "a.sock")), 1<<29, pattern(0, 4096))
	q.end(t)
}

// Between ready and go the old process serves, and none of those writes is flushed. The next
// process, or the old one itself, finds them.
func TestTakeoverKeepsWhatIsNotFlushed(t *testing.T) {
	dir := storeWith(t, "1G", "a")
	p := start(t, dir, nil, "serve", "a")
	socket := filepath.Join(dir, "run", "a.sock")
	f := dial(t, socket)
	writeAt(t, f, 0, pattern(1, 4096))
	o := request(t, dir, "a")
	writeAt(t, f, 1<<29, pattern(2, 8192))
	r, err := o.AwaitDetach(t.Context())
	test.Must(t, err)
	// Another front-end connects while no process accepts.
	waits := make(chan error, 1)
	go func() { waits <- f.Reconnect(socket) }()
	r.Close()
	test.Must(t, o.Close())
	test.Must(t, <-waits)
	wantAt(t, f, 0, pattern(1, 4096))
	wantAt(t, f, 1<<29, pattern(2, 8192))
	q := start(t, dir, nil, "serve", "a", "--takeover")
	p.waitExit(t)
	test.Must(t, f.Reconnect(socket))
	wantAt(t, f, 1<<29, pattern(2, 8192))
	q.end(t)
	q = start(t, dir, nil, "serve", "a")
	wantAt(t, dial(t, socket), 1<<29, pattern(2, 8192))
	q.end(t)
}

func TestTakeoverRefused(t *testing.T) {
	dir := storeWith(t, "1M", "a", "b", "c")
	p, other := start(t, dir, nil, "serve", "a", "b"), start(t, dir, nil, "serve", "c")
	f := dial(t, filepath.Join(dir, "run", "a.sock"))
	dial(t, filepath.Join(dir, "run", "c.sock"))
	for _, tt := range []struct {
		args []string
		code int
		text string
	}{
		{[]string{"a"}, exitFailure, "a, b"},
		{[]string{"a", "b", "c"}, exitInUse, "not served by one process"},
		{[]string{"a", "nothing"}, exitNotFound, "nothing"},
	} {
		q := start(t, dir, nil, append(append([]string{"serve"}, tt.args...), "--takeover")...)
		var exit *exec.ExitError
		if err := q.cmd.Wait(); !errors.As(err, &exit) || exit.ExitCode() != tt.code ||
			!strings.Contains(q.log.String(), tt.text) {
			t.Errorf("%v: %v\n%s", tt.args, err, q.log.String())
		}
	}
	writeAt(t, f, 0, pattern(1, 512))
	p.end(t)
	other.end(t)
}

// A process is killed at any moment of a takeover. Either the other one serves, or neither does and
// a plain start continues, with all written data, flushed or not.
func TestTakeoverKilled(t *testing.T) {
	dir := storeWith(t, "1G", "a")
	serve := func(args ...string) *killableDaemon {
		return newKillableDaemon(t, start(t, dir, nil, append([]string{"serve", "a"}, args...)...))
	}
	p := serve()
	l := newLoad(t, filepath.Join(dir, "run", "a.sock"), 1<<10)
	l.waitRequests(100)
	random := rand.New(rand.NewPCG(3, 4))
	outcome := map[string]int{}
	for i := range killedTakeovers(t) {
		q := serve("--takeover")
		time.Sleep(time.Duration(random.IntN(60)) * time.Millisecond)
		victim, left, name := p, q, "new"
		if i%2 == 1 {
			victim, left, name = q, p, "old"
		}
		victim.cmd.Process.Kill()
		<-victim.gone
		if !left.serves(t, l) {
			if name == "new" {
				t.Errorf("the old process was killed, and the new one has ended\n%s",
					left.log.String())
			}
			name = "nobody" // the old process had handed the disk over to the killed one
			left = serve()
		}
		outcome[name]++
		p = left
		l.waitRequests(20)
	}
	l.finish()
	t.Logf("outcomes: %v; %d requests", outcome, l.done.Load())
}

// takeoversEnv sets the number of takeovers in TestTakeoverKilled.
const takeoversEnv = "COWBLK_TAKEOVERS"

func killedTakeovers(t *testing.T) int {
	n := 12
	if v := os.Getenv(takeoversEnv); v != "" {
		var err error
		if n, err = strconv.Atoi(v); err != nil {
			t.Fatal(err)
		}
	}
	return n
}

// killableDaemon is a process whose end is observed.
type killableDaemon struct {
	*process
	gone chan struct{}
}

func newKillableDaemon(t *testing.T, p *process) *killableDaemon {
	m := &killableDaemon{p, make(chan struct{})}
	go func() { p.cmd.Wait(); close(m.gone) }()
	t.Cleanup(func() { p.cmd.Process.Kill(); <-m.gone })
	return m
}

// serves waits until the load makes progress (true) or the process has ended.
func (m *killableDaemon) serves(t *testing.T, l *steadyLoad) bool {
	t.Helper()
	// Completions of the other process may still be in the rings.
	from := l.done.Load() + loadDepth
	gone := false
	test.Eventually(t, "the process serves or ends", func() bool {
		select {
		case <-m.gone:
			gone = true
		default:
		}
		return gone || l.done.Load() >= from+20
	}, &m.log)
	return !gone
}

func testLog(t *testing.T) *slog.Logger { return slog.New(slog.NewTextHandler(t.Output(), nil)) }
