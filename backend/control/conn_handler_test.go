package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"cowblk/internal/test"
)

// A command that takes over its connection owns it, including descriptors.
func TestRegisterConn(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c")
	s := NewServer(Options{})
	handed := make(chan string, 1)
	s.RegisterConn("give", func(ctx context.Context, conn *net.UnixConn, args json.RawMessage) {
		if _, _, err := conn.WriteMsgUnix([]byte("x"), unix.UnixRights(0), nil); err != nil {
			t.Error(err)
		}
		b := make([]byte, 3)
		_, err := io.ReadFull(conn, b)
		s.Emit("NOT_FOR_THIS_ONE", nil)
		handed <- fmt.Sprint(string(b), string(args), err)
		<-ctx.Done() // until the peer hangs up
	})
	test.Must(t, s.Listen(path))
	go s.Serve()
	defer s.Close()
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	test.Must(t, err)
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	for _, command := range []string{`{"execute":"qmp_capabilities"}`,
		`{"execute":"give","arguments":{"a":1}}`} {
		_, err = conn.Write([]byte(command))
		test.Must(t, err)
	}
	var got []byte
	for !strings.HasSuffix(string(got), "x") {
		p, oob := make([]byte, 1), make([]byte, 64)
		_, n, _, _, err := conn.ReadMsgUnix(p, oob)
		test.Must(t, err)
		got = append(got, p...)
		if n > 0 {
			all, err := unix.ParseSocketControlMessage(oob[:n])
			test.Must(t, err)
			fds, err := unix.ParseUnixRights(&all[0])
			test.Must(t, err)
			unix.Close(fds[0])
			if p[0] != 'x' {
				t.Errorf("a descriptor came with %q", p)
			}
		}
	}
	if n := strings.Count(string(got), "\r\n") + strings.Count(string(got), "\n"); n != 2 {
		t.Errorf("%q, expected the greeting, a reply and x", got)
	}
	_, err = conn.Write([]byte("abc"))
	test.Must(t, err)
	if text := <-handed; text != `abc{"a":1}<nil>` {
		t.Error(text)
	}
	test.Must(t, conn.Close())
	test.Eventually(t, "the session ends with its client", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.sessions) == 0
	})
}

// SuspendCommands waits for the commands that run, however long they take, unless its context ends.
func TestSuspendCommandsWaitsForThoseThatRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, ctx := NewServer(Options{}), context.Background()
		test.Must(t, s.beginCommand(ctx))
		short, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		test.ErrorIs(t, test.Err(s.SuspendCommands(short)), context.DeadlineExceeded,
			"while a command runs")
		var resume func()
		suspended := test.Go(func() (err error) {
			resume, err = s.SuspendCommands(ctx)
			return err
		})
		if suspended.Ends() {
			t.Fatal("commands are suspended while one runs")
		}
		s.endCommand()
		test.Must(t, suspended.Wait())
		if _, err := s.SuspendCommands(ctx); err == nil {
			t.Error("suspended twice")
		}
		next := test.Go(func() error { return s.beginCommand(ctx) })
		if next.Ends() {
			t.Fatal("a command runs while commands are suspended")
		}
		resume()
		test.Must(t, next.Wait())
		s.endCommand()
	})
}

// While commands are suspended, none runs and no client is accepted; all continue afterwards.
func TestSuspendCommands(t *testing.T) {
	s, path := start(t, Options{}, map[string]Handler{
		"nothing": func(context.Context, json.RawMessage) (any, error) { return nil, nil },
	})
	c := dialScript(t, path).ready()
	resume, err := s.SuspendCommands(context.Background())
	test.Must(t, err)
	c.send(`{"execute":"nothing"}`)
	second := test.Go(func() error { return test.Err(c.in.Peek(1)) })
	if !second.WaitsIn(t, "control.(*Server).beginCommand") {
		t.Error("a command ran while commands were suspended")
	}
	test.Eventually(t, "the accept loop waits for the end of the suspension",
		func() bool { return test.Waiting("control.(*Server).accept") })
	later := dialScript(t, path)
	resume()
	second.Must(t)
	c.want(`{"return":{}}`)
	later.ready()
}

func TestAdoptUnix(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c")
	first, err := ListenUnix(path, "")
	test.Must(t, err)
	fd, err := Duplicate(first)
	test.Must(t, err)
	first.SetKeepFile(true)
	conn, err := net.Dial("unix", path) // waits in the backlog
	test.Must(t, err)
	defer conn.Close()
	test.Must(t, first.Close())
	second, err := AdoptUnix(fd, path)
	test.Must(t, err)
	got, err := second.AcceptUnix()
	test.Must(t, err)
	got.Close()
	test.Must(t, second.Close())
	test.ErrorIs(t, test.Err(net.Dial("unix", path)), unix.ENOENT, "the socket's file is left")
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	test.Must(t, err)
	defer unix.Close(pair[1])
	if _, err := AdoptUnix(pair[0], path); err == nil {
		t.Error("adopted a socket that does not listen")
	}
	if _, err := unix.FcntlInt(uintptr(pair[0]), unix.F_GETFD, 0); !errors.Is(err, unix.EBADF) {
		t.Error("its descriptor is left open")
	}
}
