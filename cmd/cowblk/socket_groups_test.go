package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"cowblk/backend/control/controltest"
	"cowblk/internal/test"
)

const (
	qemus    = 4243 // the group of --socket-group
	operator = 4244 // the group of --control-group
)

// dialAs is dialRaw as a user with one group and no privileges.
func dialAs(t *testing.T, path string, group int) *rawControl {
	t.Helper()
	conn, err := controltest.DialAs(t, path, nobody, group)
	test.Must(t, err)
	return rawOn(t, conn)
}

func rawOn(t *testing.T, conn net.Conn) *rawControl {
	t.Helper()
	t.Cleanup(func() { conn.Close() })
	c := &rawControl{conn, json.NewDecoder(conn)}
	test.Must(t, c.run("qmp_capabilities", nil))
	return c
}

// wantSocket checks a socket's mode and group.
func wantSocket(t *testing.T, path string, mode os.FileMode, group int) {
	t.Helper()
	fi, err := os.Lstat(path)
	test.Must(t, err)
	if fi.Mode() != os.ModeSocket|mode || mode == 0o660 && groupOf(fi) != group {
		t.Errorf("%s: mode %v, group %d, expected %v, %d", path, fi.Mode(), groupOf(fi), mode,
			group)
	}
}

// The group of the disk's socket can connect to that socket only. The group of the control socket
// can command what the process serves, and reach nothing else through it.
func TestGroups(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can be another user")
	}
	dir := shortDir(t)
	test.Must(t, os.Chmod(dir, 0o711))
	for _, line := range []string{"create a --size 1M", "promote a --tag t", "create b --size 1M",
		"promote b --tag t"} {
		command(t, dir, strings.Fields(line)...)
	}
	run := func(name string) string { return filepath.Join(dir, "run", name) }

	p := start(t, dir, nil, "serve", "a", "--socket-group", fmt.Sprint(qemus))
	dial(t, run("a.sock")).Close()
	wantSocket(t, run("a.sock"), 0o660, qemus)
	wantSocket(t, run("a.ctl"), 0o600, 0)
	if conn, err := controltest.DialAs(t, run("a.ctl"), nobody, qemus); err == nil {
		conn.Close()
		t.Error("QEMU's group has connected to the control socket")
	}
	owner := dialRaw(t, run("a.ctl"))
	test.Must(t, owner.run("nbd-server-start", map[string]string{"addr": "unix:" + run("n")}))
	wantSocket(t, run("n"), 0o600, 0)
	p.end(t)

	// The monitor that the process was started with may be named again.
	monitor := filepath.Join(dir, "qmp")
	p = start(t, dir, nil, "serve", "a", "--socket-group", fmt.Sprint(qemus), "--control-group",
		fmt.Sprint(operator), "--qmp", "unix:"+monitor)
	dial(t, run("a.sock")).Close()
	wantSocket(t, run("a.sock"), 0o660, qemus)
	wantSocket(t, run("a.ctl"), 0o660, operator)
	c := dialAs(t, run("a.ctl"), operator)
	refused := func(command string, args any) {
		t.Helper()
		if err := c.run(command, args); err == nil || !strings.Contains(err.Error(),
			"only user 0 and root may do that") {
			t.Errorf("%s %v: %v", command, args, err)
		}
	}
	allowed := func(c *rawControl, command string, args any) {
		t.Helper()
		test.Check(t, c.run(command, args), command, args)
	}
	other := "unix:" + filepath.Join(dir, "other")
	disks := []string{"a"}
	refused("cow-promote", map[string]any{"disks": disks, "quiesce": "pause", "qmp": other})
	refused("cow-promote", map[string]any{"disks": disks, "quiesce": "guest", "agent": other})
	refused("cow-promote", map[string]any{"disks": disks, "quiesce": "guest",
		"agent": "vsock:3:9999"})
	refused("cow-promote", map[string]any{"disks": disks, "quiesce": "guest",
		"libvirt": "qemu:///system", "domain": "d"})
	refused("cow-attach", map[string]any{"disk": "a", "qmp": other})
	refused("cow-detach", map[string]any{"disk": "a", "qmp": other})
	for _, addr := range []string{
		"tcp:0", "tcp:0.0.0.0:0", "vsock:any:9999", other, other + ".nbd", "unix:" + run("b.sock"),
		"unix:" + run("b.ctl"), "unix:" + run("x"),
		"unix:" + dir + "/run/../n.nbd", "unix:" + run("sub/n.nbd"), "unix:n.nbd",
		"unix:" + dir + "/run//n.nbd",
	} {
		refused("nbd-server-start", map[string]any{"addr": "unix:" + strings.TrimPrefix(addr,
			"unix:")})
		refused("nbd-server-start", map[string]any{"addr": addr})
	}
	allowed(c, "nbd-server-start", map[string]any{"addr": "unix:" + run("n.nbd")})
	wantSocket(t, run("n.nbd"), 0o660, operator)
	refused("cow-export-add", map[string]any{"name": "b@t"})
	refused("cow-export-add", map[string]any{"name": "b"})
	refused("cow-export-add", map[string]any{"name": "../b@t"})
	allowed(c, "cow-export-add", map[string]any{"name": "a@t"})
	allowed(c, "cow-export-del", map[string]any{"name": "a@t"})
	allowed(c, "cow-promote", map[string]any{"disks": disks, "tag": "u"})
	allowed(c, "cow-set", map[string]any{"keep": 3})
	if err := c.run("cow-attach", map[string]any{"disk": "a", "qmp": "unix:" + monitor,
		"timeout": 0.1}); err == nil || strings.Contains(err.Error(), "root may") {
		t.Errorf("the process's own monitor: %v", err)
	}
	owner = dialRaw(t, run("a.ctl"))
	allowed(owner, "nbd-server-start", map[string]any{"addr": "tcp:0"})
	allowed(owner, "cow-export-add", map[string]any{"name": "b@t"})
	refused("cow-export-add", map[string]any{"name": "a@t"}) // would be on the network
	allowed(c, "quit", nil)
	test.Equal(t, p.outcome(t), exitOK, "exit code")
	for _, want := range []string{
		fmt.Sprintf(`msg="control command" command=quit uid=%d pid=%d`, nobody, os.Getpid()),
		fmt.Sprintf(`msg="control command" command=cow-promote uid=%d pid=%d arguments="{\"disks\":[\"a\"],\"tag\":\"u\"}"`, nobody, os.Getpid()),
		fmt.Sprintf(`msg="control command" command=cow-export-add uid=0 pid=%d`, os.Getpid()),
		fmt.Sprintf(`msg="control command failed" command=nbd-server-start uid=%d`, nobody),
	} {
		if !strings.Contains(p.log.String(), want) {
			t.Errorf("the log misses %s\n%s", want, p.log.String())
		}
	}
}

// After a takeover the control socket has the group of the new process, or none.
func TestControlGroupAfterTakeover(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can give files to any group")
	}
	dir := storeWith(t, "1M", "a")
	ctl := filepath.Join(dir, "run", "a.ctl")
	group := fmt.Sprint(operator)
	p := start(t, dir, nil, "serve", "a", "--socket-group", group, "--control-group", group)
	dial(t, filepath.Join(dir, "run", "a.sock")).Close()
	test.Must(t, dialRaw(t, ctl).run("nbd-server-start",
		map[string]string{"addr": "unix:" + filepath.Join(dir, "run", "n")}))
	next := start(t, dir, nil, "serve", "a", "--takeover")
	if code := p.outcome(t); code != exitOK {
		t.Fatalf("exit code %d\n%s", code, p.log.String())
	}
	dial(t, filepath.Join(dir, "run", "a.sock")).Close()
	wantSocket(t, ctl, 0o600, 0)
	wantSocket(t, filepath.Join(dir, "run", "n"), 0o600, 0)
	// QEMU must still be able to connect
	wantSocket(t, filepath.Join(dir, "run", "a.sock"), 0o660, operator)
	next.end(t)
}

// A confined process makes its NBD sockets also in a run directory that its group may write to.
func TestNBDSocketInSharedDirectory(t *testing.T) {
	dir := storeWith(t, "1M", "a")
	run := filepath.Join(dir, "run")
	test.Must(t, errors.Join(os.MkdirAll(run, 0o755), os.Chmod(run, 0o771)))
	p := start(t, dir, asOrdinaryUser(t, dir), "serve", "a")
	dial(t, filepath.Join(run, "a.sock")).Close()
	ctl := dialRaw(t, filepath.Join(dir, "run", "a.ctl"))
	socket := filepath.Join(dir, "run", "n")
	for range 2 {
		test.Must(t, ctl.run("nbd-server-start", map[string]string{"addr": "unix:" + socket}))
		wantSocket(t, socket, 0o600, 0)
		test.Must(t, ctl.run("nbd-server-stop", nil))
	}
	p.end(t)
	// private directories of sockets
	if left, err := filepath.Glob(filepath.Join(dir, "run", ".*")); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

func groupOf(fi os.FileInfo) int { return int(fi.Sys().(*syscall.Stat_t).Gid) }
