package takeover

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cowblk/backend/control"
	"cowblk/internal/test"
)

func pair(t testing.TB) (a, b *net.UnixConn) {
	t.Helper()
	a, b = test.SocketPair(t)
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

func TestMessages(t *testing.T) {
	a, b := pair(t)
	from, to := NewConn(a), NewConn(b)
	file, err := os.Create(filepath.Join(t.TempDir(), "file"))
	test.Must(t, err)
	defer file.Close()
	test.Must(t, test.Err(file.WriteString("what is in it")))
	fd := int(file.Fd())
	sent := []Message{
		{Kind: Export, Name: "vm1@one"},
		{Kind: Connection, Disk: "vm1", FD: fd},
		{Kind: Socket, Disk: strings.Repeat("x", 1000), Path: "/run/x", KeepFile: true, FD: fd},
		{Kind: Ready},
	}
	for _, m := range sent {
		test.Must(t, from.Send(m))
	}
	for _, want := range sent {
		got, err := to.Expect(want.Kind)
		test.Must(t, err)
		if (got.FD > 0) != (want.FD > 0) {
			t.Errorf("%+v, want %+v", got, want)
		}
		if got.FD > 0 {
			p := make([]byte, 100)
			if n, err := unix.Pread(got.FD, p, 0); err != nil || string(p[:n]) != "what is in it" {
				t.Errorf("file: %q, %v", p[:n], err)
			}
			unix.Close(got.FD)
		}
		got.FD, want.FD = 0, 0
		test.Equal(t, got, want)
	}
	for _, m := range []Message{{Kind: Ready, FD: fd}, {Kind: Connection},
		{Kind: Failed, Error: strings.Repeat("x", maxMessage)}} {
		if err := from.Send(m); err == nil {
			t.Errorf("%q was sent", m.Kind)
		}
	}
	test.Must(t, from.Send(Message{Kind: Refused, Error: "no"}))
	var refused *RefusedError
	if _, err := to.Expect(Go); !errors.As(err, &refused) || refused.Reason != "no" {
		t.Errorf("refusal: %v", err)
	}
	a.Close()
	if _, err := to.Receive(); err != io.EOF {
		t.Errorf("end: %v", err)
	}
	if err := to.Send(Message{Kind: Go}); err == nil {
		t.Error("sent to nobody")
	}
}

// Any input gives an error or a message, and leaks no descriptor.
func FuzzReceive(f *testing.F) {
	frame := func(body string) []byte {
		return append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...)
	}
	f.Add(frame(`{"kind":"socket","disk":"a"}`), uint8(1))
	f.Add(frame(`{"kind":"ready"}`), uint8(2))
	f.Add(frame(`{"kind":"state"}`), uint8(0))
	f.Add([]byte{255, 255, 255, 255}, uint8(1))
	f.Add([]byte{0, 0}, uint8(1))
	f.Fuzz(func(t *testing.T, p []byte, fds uint8) {
		a, b := pair(t)
		before := test.CountFDs(t)
		rights := make([]int, fds%8)
		var oob []byte
		if len(rights) > 0 {
			oob = unix.UnixRights(rights...)
		}
		if len(p) > 0 {
			if _, _, err := a.WriteMsgUnix(p, oob, nil); err != nil {
				t.Fatal(err)
			}
		}
		a.CloseWrite()
		m, err := NewConn(b).Receive()
		if m.FD > 0 {
			if err != nil {
				t.Errorf("%+v and %v", m, err)
			}
			unix.Close(m.FD)
		}
		if n := test.CountFDs(t); n != before {
			t.Errorf("%d descriptors are open, %d were", n, before)
		}
	})
}

// A program that does not know the command gives an error of the control protocol; others may send
// anything.
func TestRequestToOthers(t *testing.T) {
	text := test.Texts(t, "request.texts")
	greeting := `{"QMP":{"version":{},"capabilities":[]}}` + "\r\n"
	for name, tt := range map[string]struct {
		answer string
		want   error // nil: a RefusedError
	}{
		"another program": {greeting + `{"return":{}}` + "\n" + `{"event":"X","data":{}}` + "\n" +
			`{"error":{"class":"CommandNotFound","desc":"The command cow-takeover has not been found"}}` + "\n", nil},
		"refused by the socket": {greeting + `{"return":{}}` + "\n" +
			`{"error":{"class":"GenericError","desc":"this command is for user 1"}}` + "\n", nil},
		"nonsense": {greeting + "\x00\x00\x00\x02{]", ErrProtocol},
		"the wrong message": {greeting + "\x00\x00\x00\x11" + `{"kind":"serving"}`[:17],
			ErrProtocol},
		"ready without a socket": {greeting + "\x00\x00\x00\x10" + `{"kind":"ready"}`, ErrProtocol},
		"nothing":                {"", io.EOF},
	} {
		path := filepath.Join(t.TempDir(), "c")
		l, err := net.Listen("unix", path)
		test.Must(t, err)
		go func() {
			c, err := l.Accept()
			if err != nil {
				return
			}
			defer c.Close()
			io.WriteString(c, tt.answer)
			c.(*net.UnixConn).CloseWrite()
			io.Copy(io.Discard, c)
		}()
		o, err := Request(t.Context(), path, []string{"a"})
		if err == nil {
			o.Close()
		}
		var refused *RefusedError
		if text(t, name, err); !errors.As(err, &refused) &&
			(tt.want == nil || !errors.Is(err, tt.want)) {
			t.Errorf("%s: %v, expected %v", name, err, tt.want)
		}
		l.Close()
	}
	test.ErrorIs(t, test.Err(Request(t.Context(), filepath.Join(t.TempDir(), "nobody"), nil)),
		control.ErrNoDaemon, "nobody there")
}

// A stopped process sends no greeting: the error names the process.
func TestRequestToAStoppedProcess(t *testing.T) {
	conn, _ := pair(t)
	_, err := request(t.Context(), conn, "/run/x.ctl", []string{"vm1"}, time.Millisecond)
	if !errors.Is(err, os.ErrDeadlineExceeded) || !strings.Contains(err.Error(),
		fmt.Sprint(os.Getpid())) {
		t.Errorf("%v, expected a deadline, and the process named", err)
	}
}
