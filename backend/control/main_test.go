package control

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"cowblk/internal/test"
)

// waitTimeout bounds every wait in these tests. Reaching it is a failure.
const waitTimeout = 20 * time.Second

// start runs a server until the test ends and checks that it leaks nothing.
func start(t *testing.T, o Options, handlers map[string]Handler) (*Server, string) {
	t.Helper()
	test.NoLeaks(t)
	if o.Version == (Version{}) {
		o.Version = Version{1, 2, 3, "cowblk"}
	}
	s := NewServer(o)
	for name, h := range handlers {
		s.Register(name, h)
	}
	path := filepath.Join(t.TempDir(), "ctl")
	test.Must(t, s.Listen(path))
	served := make(chan error, 1)
	go func() { served <- s.Serve() }()
	t.Cleanup(func() {
		test.Check(t, s.Close(), "Close")
		if err := <-served; err != nil && err != ErrClosed {
			t.Errorf("Serve: %v", err)
		}
		if _, err := os.Lstat(path); !os.IsNotExist(err) {
			t.Errorf("socket file after Close: %v", err)
		}
	})
	return s, path
}

// script is a bare connection, without any QMP library.
type script struct {
	t    *testing.T
	conn *net.UnixConn
	in   *bufio.Reader
}

func dialScript(t *testing.T, path string) *script {
	t.Helper()
	conn, err := net.Dial("unix", path)
	test.Must(t, err)
	t.Cleanup(func() { conn.Close() })
	return dialScriptOn(t, conn.(*net.UnixConn))
}

// dialScriptOn is dialScript on an existing connection, which the caller closes.
func dialScriptOn(t *testing.T, conn *net.UnixConn) *script {
	conn.SetDeadline(time.Now().Add(waitTimeout))
	return &script{t, conn, bufio.NewReaderSize(conn, 1<<17)}
}

func (s *script) send(text string) {
	s.t.Helper()
	test.Must(s.t, test.Err(io.WriteString(s.conn, text)), "send")
}

func (s *script) line() string {
	s.t.Helper()
	l, err := s.in.ReadString('\n')
	if err != nil {
		s.t.Fatalf("read: %v (got %q)", err, l)
	}
	return strings.TrimSuffix(l, "\n")
}

func (s *script) want(line string) {
	s.t.Helper()
	if got := s.line(); got != line {
		s.t.Fatalf("got  %s\nwant %s", got, line)
	}
}

// ready reads the greeting and negotiates.
func (s *script) ready() *script {
	s.t.Helper()
	s.line()
	s.send(`{"execute":"qmp_capabilities"}`)
	s.want(`{"return":{}}`)
	return s
}

var stamp = regexp.MustCompile(`"timestamp":\{"seconds":\d+,"microseconds":\d+\}`)

// echo is a command that returns its arguments.
func echo(_ context.Context, args json.RawMessage) (any, error) { return args, nil }
