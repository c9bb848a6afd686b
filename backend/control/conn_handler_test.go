package control

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
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

// While commands are suspended, none runs and no client is accepted; all continue afterwards.
func TestSuspendCommands(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c")
	s := NewServer(Options{})
	entered, leave := make(chan struct{}), make(chan struct{})
	s.Register("long", func(context.Context, json.RawMessage) (any, error) {
		entered <- struct{}{}
		<-leave
		return nil, nil
	})
	test.Must(t, s.Listen(path))
	go s.Serve()
	defer s.Close()
	c, err := Dial(path, 0)
	test.Must(t, err)
	run := func() chan error {
		done := make(chan error, 1)
		go func() { done <- c.Run(context.Background(), "long", nil, nil) }()
		return done
	}
	first := run()
	<-entered
	short, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	test.ErrorIs(t, test.Err(s.SuspendCommands(short)), context.DeadlineExceeded,
		"while a command runs")
	held := make(chan func(), 1)
	go func() {
		release, err := s.SuspendCommands(context.Background())
		test.Check(t, err)
		held <- release
	}()
	select {
	case <-held:
		t.Fatal("held while a command runs")
	case <-time.After(20 * time.Millisecond):
	}
	leave <- struct{}{}
	test.Must(t, <-first)
	release := <-held
	if _, err := s.SuspendCommands(context.Background()); err == nil {
		t.Error("held twice")
	}
	second := run()
	conn, err := net.Dial("unix", path)
	test.Must(t, err)
	defer conn.Close()
	select {
	case <-entered:
		t.Fatal("a command runs that should be held")
	case <-time.After(50 * time.Millisecond):
	}
	release()
	<-entered
	leave <- struct{}{}
	test.Must(t, <-second)
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	if line, err := bufio.NewReader(conn).ReadString('\n'); err != nil || !strings.Contains(line,
		"QMP") {
		t.Errorf("who came meanwhile: %q, %v", line, err)
	}
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
