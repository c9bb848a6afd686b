package vhost_test

import (
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"cowblk/internal/test"
	"cowblk/vhost"
	"cowblk/vhost/frontend"
	"cowblk/vhost/guest"
)

// fake is a Backend that processes nothing. It checks the rules in Backend's comments about the
// session's calls, and records the calls.
type fake struct {
	mu         sync.Mutex // Serve calls from one goroutine, tests read from another
	queues     int
	log        []string
	wrong      []string // broken rules
	running    map[int]vhost.Queue
	config     [64]byte
	memory     *guest.Table
	refuse     map[string]error // by method
	needsReset bool
	base       uint16 // added to a queue's base when it stops
}

func newFake(queues int) *fake {
	b := &fake{queues: queues, running: map[int]vhost.Queue{}, refuse: map[string]error{}}
	for i := range b.config {
		b.config[i] = byte(i)
	}
	return b
}

func (b *fake) note(format string, args ...any) {
	b.log = append(b.log, fmt.Sprintf(format, args...))
}

func (b *fake) rule(ok bool, format string, args ...any) {
	if !ok {
		b.wrong = append(b.wrong, fmt.Sprintf(format, args...))
	}
}

func (b *fake) Features() uint64 { return frontend.DriverFeatures }
func (b *fake) Queues() int      { return b.queues }

func (b *fake) SetFeatures(f uint64) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.rule(f&^b.Features() == 0, "SetFeatures(%#x) has bits that were not offered", f)
	b.rule(len(b.running) == 0, "SetFeatures while %d queues run", len(b.running))
	b.note("features %#x", f)
	return b.refuse["SetFeatures"]
}

func (b *fake) Config(p []byte) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.rule(len(p) <= vhost.MaxConfigSize, "Config of %d bytes", len(p))
	clear(p[copy(p, b.config[:]):])
	return b.refuse["Config"]
}

func (b *fake) SetConfig(off uint32, p []byte) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.note("config %d %x", off, p)
	return b.refuse["SetConfig"]
}

func (b *fake) SetMemory(t *guest.Table) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.note("memory %d", len(t.Regions()))
	if err := b.refuse["SetMemory"]; err != nil {
		return err
	}
	t.Acquire()
	if b.memory != nil {
		b.memory.Release()
	}
	b.memory = t
	return nil
}

func (b *fake) StartQueue(q vhost.Queue) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	_, twice := b.running[q.Index]
	b.rule(!twice, "StartQueue(%d) of a running queue", q.Index)
	b.rule(q.Memory != nil && q.Memory == b.memory,
		"StartQueue(%d) with another table than SetMemory", q.Index)
	b.rule(q.Num != 0 && q.Num&(q.Num-1) == 0, "StartQueue(%d) with size %d", q.Index, q.Num)
	if err := b.refuse["StartQueue"]; err != nil {
		closeAll(q.Kick, q.Call, q.Err)
		return err
	}
	b.running[q.Index] = q
	b.note("start %d num %d base %d kick %t call %t err %t", q.Index, q.Num, q.Base, q.Kick >= 0,
		q.Call >= 0, q.Err >= 0)
	return nil
}

func (b *fake) StopQueue(i int) (uint16, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	q, ok := b.running[i]
	b.rule(ok, "StopQueue(%d) of a queue that does not run", i)
	if ok {
		closeAll(q.Kick, q.Call, q.Err)
	}
	delete(b.running, i)
	b.note("stop %d", i)
	return q.Base + b.base, b.refuse["StopQueue"]
}

func (b *fake) SetCall(i, fd int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	q, ok := b.running[i]
	b.rule(ok, "SetCall(%d) of a queue that does not run", i)
	closeAll(q.Call)
	q.Call = fd
	b.running[i] = q
	b.note("call %d %t", i, fd >= 0)
}

func (b *fake) SetErr(i, fd int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	q, ok := b.running[i]
	b.rule(ok, "SetErr(%d) of a queue that does not run", i)
	closeAll(q.Err)
	q.Err = fd
	b.running[i] = q
	b.note("err %d %t", i, fd >= 0)
}

func (b *fake) SetStatus(s uint8) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.note("status %d", s)
}

func (b *fake) NeedsReset() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.needsReset
}

func (b *fake) Reset() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.rule(len(b.running) == 0, "Reset while %d queues run", len(b.running))
	b.note("reset")
}

func closeAll(fds ...int) {
	for _, fd := range fds {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
}

// setBase makes queues advance by n until they stop.
func (b *fake) setBase(n uint16) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.base = n
}

// take returns the calls recorded since the last take.
func (b *fake) take() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := strings.Join(b.log, "\n")
	b.log = nil
	return s
}

// done drops the fake's memory and reports violated rules and running queues.
func (b *fake) done() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.memory != nil {
		b.memory.Release()
		b.memory = nil
	}
	if len(b.running) > 0 {
		b.wrong = append(b.wrong, fmt.Sprintf("%d queues still run", len(b.running)))
	}
	if len(b.wrong) > 0 {
		return errors.New(strings.Join(b.wrong, "; "))
	}
	return nil
}

// mappings counts the process's mappings of guest memory.
func mappings(t testing.TB) int {
	t.Helper()
	b, err := os.ReadFile("/proc/self/maps")
	test.Must(t, err)
	return strings.Count(string(b), "/memfd:")
}

// served is a session under test.
type served struct {
	t    testing.TB
	be   *fake
	end  chan error
	conn *net.UnixConn // the front-end's side
	fds  int           // open before the session
	maps int
}

func serve(t testing.TB, be *fake) *served {
	t.Helper()
	return serveWith(t, be, vhost.Options{})
}

func serveWith(t testing.TB, be *fake, o vhost.Options) *served {
	t.Helper()
	s := &served{t: t, be: be, end: make(chan error, 1), fds: test.CountFDs(t), maps: mappings(t)}
	a, b := test.SocketPair(t)
	s.conn = a
	go func() { s.end <- vhost.Serve(b, be, o) }()
	return s
}

// wait closes the front-end's side, checks that Serve leaks nothing, and returns Serve's error.
func (s *served) wait() error {
	s.t.Helper()
	s.conn.Close()
	err := <-s.end
	if e := s.be.done(); e != nil {
		s.t.Errorf("after Serve: %v", e)
	}
	if n := test.CountFDs(s.t); n != s.fds {
		s.t.Errorf("after Serve: %d descriptors are open, expected %d", n, s.fds)
	}
	if n := mappings(s.t); n != s.maps {
		s.t.Errorf("after Serve: %d mappings, expected %d", n, s.maps)
	}
	return err
}

// expect compares the recorded calls with lines.
func (s *served) expect(what string, lines ...string) {
	s.t.Helper()
	got, want := s.be.take(), strings.Join(lines, "\n")
	if got != want {
		s.t.Errorf("%s:\n%s\nexpected:\n%s", what, got, want)
	}
}

func repeat(n int, format string) (out []string) {
	for i := range n {
		out = append(out, fmt.Sprintf(format, i))
	}
	return out
}

func lines(parts ...[]string) []string { return slices.Concat(parts...) }
