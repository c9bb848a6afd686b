package main

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cowblk/internal/test"
)

// fdStoreManager acts as systemd for a service with a file descriptor store.
type fdStoreManager struct {
	t        *testing.T
	notify   *net.UnixConn
	names    []string
	store    []*os.File
	messages []string // other messages
}

func newFDStoreManager(t *testing.T, dir string) *fdStoreManager {
	t.Helper()
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "notify"),
		Net: "unixgram"})
	test.Must(t, err)
	m := &fdStoreManager{t: t, notify: c}
	t.Cleanup(func() {
		c.Close()
		for _, f := range m.store {
			f.Close()
		}
	})
	return m
}

// start starts cowblk with the stored sockets, and returns when it is ready.
func (m *fdStoreManager) start(dir string, args ...string) *process {
	m.t.Helper()
	p := start(m.t, dir, func(c *exec.Cmd) {
		// LISTEN_PID must be the process's own, so a shell sets it and executes cowblk.
		c.Args = append([]string{"sh", "-c", `LISTEN_PID=$$ exec "$0" "$@"`, c.Path}, c.Args[1:]...)
		c.Path = "/bin/sh"
		c.ExtraFiles = m.store
		c.Env = append(c.Env, "NOTIFY_SOCKET="+m.notify.LocalAddr().String())
		if len(m.store) > 0 {
			c.Env = append(c.Env, fmt.Sprint("LISTEN_FDS=", len(m.store)),
				"LISTEN_FDNAMES="+strings.Join(m.names, ":"))
		}
	}, args...)
	m.until("READY=1", p)
	return p
}

// until receives messages up to one that equals last.
func (m *fdStoreManager) until(last string, p *process) {
	m.t.Helper()
	buf, oob := make([]byte, 256), make([]byte, 256)
	m.notify.SetReadDeadline(time.Now().Add(20 * time.Second))
	for {
		n, oobn, _, _, err := m.notify.ReadMsgUnix(buf, oob)
		if err != nil {
			m.t.Fatalf("%s: %v\n%s", last, err, p.log.String())
		}
		text := string(buf[:n])
		if name, ok := strings.CutPrefix(text, "FDSTORE=1\nFDNAME="); ok {
			all, err := unix.ParseSocketControlMessage(oob[:oobn])
			if err != nil || len(all) != 1 {
				m.t.Fatalf("%s: %d control messages, %v", text, len(all), err)
			}
			fds, err := unix.ParseUnixRights(&all[0])
			if err != nil || len(fds) != 1 {
				m.t.Fatalf("%s: %v, %v", text, fds, err)
			}
			m.names, m.store = append(m.names, name),
				append(m.store, os.NewFile(uintptr(fds[0]), name))
			continue
		}
		m.messages = append(m.messages, text)
		if text == last {
			return
		}
	}
}

// After a restart by systemd, also of a killed process, the sockets have existed all the time.
// Clients that connect in between wait, for the disks and for the control socket.
func TestRestartWithDescriptorStore(t *testing.T) {
	dir := storeWith(t, "64M", "a", "b")
	m := newFDStoreManager(t, dir)
	p := m.start(dir, "serve", "a", "b", "--cache", "writethrough")
	if slices.Sort(m.names); !slices.Equal(m.names, []string{".control", "a", "b"}) {
		t.Fatalf("stored: %v\n%s", m.names, p.log.String())
	}
	// The order of names and files is the fd store's.
	m.names = nil
	for _, f := range m.store {
		m.names = append(m.names, f.Name())
	}
	l := newLoad(t, filepath.Join(dir, "run", "a.sock"), 4096)
	l.waitRequests(100)
	for _, end := range []unix.Signal{unix.SIGTERM, unix.SIGKILL, unix.SIGTERM} {
		test.Must(t, p.cmd.Process.Signal(end))
		p.cmd.Wait()
		asked := make(chan error, 1)
		go func() {
			conn, err := net.Dial("unix", filepath.Join(dir, "run", "a.ctl"))
			if err == nil {
				conn.SetDeadline(time.Now().Add(20 * time.Second))
				_, err = conn.Read(make([]byte, 1)) // the greeting
				conn.Close()
			}
			asked <- err
		}()
		p = m.start(dir, "serve", "a", "b", "--cache", "writethrough")
		test.Check(t, <-asked, "after", end)
		l.waitRequests(100)
	}
	if len(m.store) != 3 {
		t.Errorf("%d descriptors are stored after restarts, expected the same 3", len(m.store))
	}
	l.finish()
	if l.refused > 0 {
		t.Errorf("%d connections were refused", l.refused)
	}
	t.Logf("nothing completed for %v at the restarts", l.gaps)
	p.end(t)
	wantAt(t, dial(t, restarted(t, m, dir)), 0, pattern(0, 512))
}

// restarted serves disk b, whose content is zeros, from the fd store.
func restarted(t *testing.T, m *fdStoreManager, dir string) (socket string) {
	t.Helper()
	p := m.start(dir, "serve", "a", "b")
	t.Cleanup(func() { p.end(t) })
	return filepath.Join(dir, "run", "b.sock")
}

// If systemd has kept the control socket only, it is used, and the disk's socket is made anew.
func TestRestartWithControlSocketOnly(t *testing.T) {
	dir := shortDir(t)
	command(t, dir, "create", "a", "--size", "1M")
	m := newFDStoreManager(t, dir)
	p := m.start(dir, "serve", "a")
	m.store = slices.DeleteFunc(m.store, func(f *os.File) bool {
		return f.Name() != ".control" && f.Close() == nil
	})
	m.names = []string{".control"}
	ctl := filepath.Join(dir, "run", "a.ctl")
	before, err := os.Stat(ctl)
	test.Must(t, err)
	p.cmd.Process.Kill()
	p.cmd.Wait()
	p = m.start(dir, "serve", "a")
	if after, err := os.Stat(ctl); err != nil || !os.SameFile(before, after) {
		t.Errorf("the control socket was made anew: %v", err)
	}
	dialControl(t, dir, "a")
	p.end(t)
}

// A socket that was made in a directory of another user has only a /proc path in the kernel. The
// next process uses its configured path.
func TestRestartInAnothersDirectory(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can make a directory of another user's")
	}
	dir, theirs := shortDir(t), shortDir(t)
	test.Must(t, os.Chown(theirs, nobody, nobody))
	command(t, dir, "create", "a", "--size", "1M")
	socket := filepath.Join(theirs, "s")
	m := newFDStoreManager(t, dir)
	p := m.start(dir, "serve", "a", "--socket-path", socket)
	slices.Sort(m.names)
	for range 2 {
		if text := command(t, dir, "info", "a"); !strings.Contains(text, " on "+socket+"\n") {
			t.Errorf("info:\n%s", text)
		}
		wantAt(t, dial(t, socket), 0, pattern(0, 512))
		test.Must(t, p.cmd.Process.Signal(unix.SIGTERM))
		p.cmd.Wait()
		m.names = nil
		for _, f := range m.store {
			m.names = append(m.names, f.Name())
		}
		p = m.start(dir, "serve", "a", "--socket-path", socket)
	}
	p.end(t)
}
