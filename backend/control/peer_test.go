package control

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cowblk/backend/control/controltest"
	"cowblk/internal/test"
)

// record is a log that can be read while it is written.
type record struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (r *record) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.b.Write(p)
}

func (r *record) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.b.String()
}

// Commands that change something are logged with their sender, and owner-only commands are refused
// to members of the group.
func TestPeers(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can be another user")
	}
	dir := t.TempDir()
	test.Must(t, os.Chmod(filepath.Dir(dir), 0o711))
	path := filepath.Join(dir, "c")
	var log record
	s := NewServer(Options{Group: "4242", Log: slog.New(slog.NewTextHandler(&log, nil)),
		GroupMay: map[string]bool{"ask": true, "change": true, "own": true, "take": true}})
	s.Register("closed", echo)
	s.RegisterChange("closed-change", echo)
	s.Register("ask", echo)
	s.RegisterChange("change", echo)
	s.RegisterChange("own", func(ctx context.Context, _ json.RawMessage) (any, error) {
		return nil, OwnerOnly(ctx, "to own")
	})
	s.RegisterConn("take", func(_ context.Context, conn *net.UnixConn, _ json.RawMessage) {
		fmt.Fprintln(conn, "taken")
	})
	test.Must(t, s.Listen(path))
	go s.Serve()
	defer s.Close()

	run := func(uid, gid int, command string) string {
		t.Helper()
		conn, err := controltest.DialAs(t, path, uid, gid)
		test.Must(t, err)
		defer conn.Close()
		b := dialScriptOn(t, conn).ready()
		b.send(command)
		return b.line()
	}
	for _, tc := range []struct {
		uid           int
		command, want string
	}{
		{nobody, `{"execute":"ask"}`, `{"return":{}}`},
		{nobody, `{"execute":"change","arguments":{"a":"b c"}}`, `{"return":{"a":"b c"}}`},
		{nobody, `{"execute":"own"}`, `to own: only user 0 and root may do that, found user 65534`},
		{nobody, `{"execute":"take"}`, `only user 0 and root`},
		{nobody, `{"execute":"closed"}`, `command closed: only user 0 and root`},
		{nobody, `{"execute":"closed-change"}`, `only user 0 and root`},
		{nobody, `{"execute":"query-commands"}`, `"closed"`},
		{0, `{"execute":"closed"}`, `{"return":{}}`},
		{0, `{"execute":"own"}`, `{"return":{}}`},
		{0, `{"execute":"take"}`, `taken`},
	} {
		if got := run(tc.uid, 4242, tc.command); !strings.Contains(got, tc.want) {
			t.Errorf("user %d, %s: %s", tc.uid, tc.command, got)
		}
	}
	lines := log.String()
	for _, want := range []string{
		fmt.Sprintf(`msg="control command" command=change uid=65534 pid=%d arguments="{\"a\":\"b c\"}"`, os.Getpid()),
		fmt.Sprintf(`msg="control command" command=own uid=65534 pid=%d`, os.Getpid()),
		`level=WARN msg="control command failed" command=own uid=65534`,
		`msg="control command" command=own uid=0`,
		`level=WARN msg="control command failed" command=closed-change uid=65534`,
		`msg="control command" command=take uid=65534`,
		`msg="control command" command=take uid=0`,
	} {
		if !strings.Contains(lines, want) {
			t.Errorf("the log misses %s", want)
		}
	}
	if strings.Contains(lines, "command=ask") {
		t.Error("a question was logged")
	}
	if t.Failed() {
		t.Log(lines)
	}
	if _, err := controltest.DialAs(t, path, nobody, nobody); err == nil {
		t.Error("a user outside of the group has connected")
	}
	if err := OwnerOnly(context.Background(), "x"); err == nil {
		t.Error("nobody is the owner")
	}
}

// A client in the backlog of a socket that the former process had opened to more users is not
// accepted after a takeover, unless it is in the new group.
func TestBacklogPeersChecked(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can be another user")
	}
	dir := t.TempDir()
	test.Must(t, os.Chmod(filepath.Dir(dir), 0o711))
	for group, clients := range map[string]int{"": 0, "4242": 2} {
		path := filepath.Join(dir, "c"+group)
		before, err := ListenUnix(path, "")
		test.Must(t, err)
		test.Must(t, os.Chmod(path, 0o666))
		var conns []*net.UnixConn
		for _, who := range [][]uint32{{4241}, {4242}, {4243, 1, 4242}, {4243, 1}} {
			conn, err := controltest.DialAs(t, path, nobody, int(who[0]), who[1:]...)
			test.Must(t, err)
			defer conn.Close()
			conns = append(conns, conn)
		}
		fd, err := Duplicate(before)
		test.Must(t, err)
		l, err := AdoptUnix(fd, path)
		test.Must(t, err)
		test.Must(t, l.SetGroup(group))
		s := NewServer(Options{})
		test.Must(t, s.Add(l))
		go s.Serve()
		greeted := 0
		for _, conn := range conns {
			conn.SetDeadline(time.Now().Add(waitTimeout))
			if n, err := conn.Read(make([]byte, 1)); n == 1 && err == nil {
				greeted++
			}
		}
		if greeted != clients {
			t.Errorf("group %q: %d clients, expected %d", group, greeted, clients)
		}
		dialScript(t, path).ready()
		test.Must(t, s.Close())
		before.SetKeepFile(true)
		test.Must(t, before.Close())
	}
}

// Members of the group cannot lock out the owner.
func TestOwnerNotLockedOut(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can be another user")
	}
	dir := t.TempDir()
	test.Must(t, os.Chmod(filepath.Dir(dir), 0o711))
	path := filepath.Join(dir, "c")
	s := NewServer(Options{Group: "4242", MaxClients: 2})
	test.Must(t, s.Listen(path))
	go s.Serve()
	defer s.Close()
	for i, turned := range []bool{false, false, true} {
		conn, err := controltest.DialAs(t, path, nobody, 4242)
		test.Must(t, err)
		defer conn.Close()
		if line := dialScriptOn(t, conn).line(); strings.Contains(line,
			"no more are allowed") != turned {
			t.Errorf("client %d of the group: %s", i, line)
		}
	}
	dialScript(t, path).ready()
}

// Without a group no other user can connect, whatever the directory's mode.
func TestNoGroup(t *testing.T) {
	dir := t.TempDir()
	test.Must(t, os.Chmod(filepath.Dir(dir), 0o711))
	path := filepath.Join(dir, "c")
	l, err := ListenUnix(path, "")
	test.Must(t, err)
	defer l.Close()
	test.ErrorIs(t, test.Err(controltest.DialAs(t, path, nobody, 0)), unix.EACCES, "another user")
}
