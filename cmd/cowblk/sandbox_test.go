package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cowblk/backend/backendtest"
	"cowblk/backend/control"
	"cowblk/backend/daemon"
	"cowblk/backend/sandbox/sandboxtest"
	"cowblk/cow/layer"
	"cowblk/internal/test"
)

const (
	// probeEnv makes the test binary, as cowblk, execute file operations that are requested on this
	// socket.
	probeEnv = "COWBLK_TEST_PROBE"
	// noLandlockEnv simulates a kernel without landlock.
	noLandlockEnv = "COWBLK_TEST_WITHOUT_LANDLOCK"
)

// In init, so that both apply before main starts threads.
func init() {
	if os.Getenv(mainEnv) == "" {
		return
	}
	if os.Getenv(noLandlockEnv) != "" {
		if err := sandboxtest.Forbid(unix.ENOSYS); err != nil {
			panic(err)
		}
	}
	if path := os.Getenv(probeEnv); path != "" {
		l, err := net.Listen("unix", path)
		if err != nil {
			panic(err)
		}
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				op, _ := bufio.NewReader(c).ReadString('\n')
				fmt.Fprintln(c, trySandboxOp(strings.Fields(op)))
				c.Close()
			}
		}()
	}
}

// trySandboxOp executes one file operation and returns its outcome.
func trySandboxOp(op []string) string {
	open := func(flag int) error {
		f, err := os.OpenFile(op[1], flag, 0o600)
		if err == nil {
			f.Close()
		}
		return err
	}
	var err error
	switch op[0] {
	case "read":
		err = open(os.O_RDONLY)
	case "write":
		err = open(os.O_WRONLY)
	case "make":
		err = open(os.O_WRONLY | os.O_CREATE | os.O_EXCL)
	case "truncate":
		err = os.Truncate(op[1], 0)
	case "execute":
		err = exec.Command(op[1]).Run()
	case "remove":
		err = os.Remove(op[1])
	}
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return unix.ErrnoName(errno)
	}
	return fmt.Sprint(err)
}

// probeSandboxOp requests an operation from a process started with probeEnv.
func probeSandboxOp(t *testing.T, socket, op, path string) string {
	t.Helper()
	c, err := net.Dial("unix", socket)
	test.Must(t, err)
	defer c.Close()
	fmt.Fprintln(c, op, path)
	line, err := bufio.NewReader(c).ReadString('\n')
	test.Must(t, err)
	return strings.TrimSpace(line)
}

// asOrdinaryUser prepares a command to run as an ordinary user, who gets the directory. It does
// nothing if the test runs as one.
func asOrdinaryUser(t *testing.T, dir string) func(*exec.Cmd) {
	t.Helper()
	if os.Geteuid() != 0 {
		return func(*exec.Cmd) {}
	}
	// The directory of the test binary is accessible only to root.
	binary, err := os.ReadFile(os.Args[0])
	test.Must(t, err)
	copied := filepath.Join(dir, "cowblk")
	test.Must(t, os.WriteFile(copied, binary, 0o755))
	chownToNobody(t, dir)
	return func(c *exec.Cmd) {
		c.Path, c.Args[0] = copied, copied
		c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody,
			Gid: nobody}}
	}
}

const nobody = 65534

// chownToNobody gives the files in a directory to the ordinary user.
func chownToNobody(t *testing.T, dir string) {
	t.Helper()
	if os.Geteuid() != 0 {
		return
	}
	if err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		return errors.Join(err, os.Lchown(path, nobody, nobody))
	}); err != nil {
		t.Fatal(err)
	}
}

// waitSealed waits until the former heads of the served disk are sealed and reopened.
func waitSealed(t *testing.T, c *control.Client) {
	t.Helper()
	test.Eventually(t, "the former heads are sealed", func() bool {
		var stats []struct{ Unsealed int }
		test.Must(t, c.Run(t.Context(), "query-cow-stats", nil, &stats))
		return stats[0].Unsealed == 0
	})
}

// A disk is served by a confined process of an ordinary user: files elsewhere are out of reach, and
// all functions of a running disk work.
func TestServeConfined(t *testing.T) {
	dir := shortDir(t)
	st := filepath.Join(dir, "st")
	base, foreign, probe := filepath.Join(dir, "base"), filepath.Join(dir, "foreign"),
		filepath.Join(dir, "probe")
	for path, b := range map[string]byte{base: 3, foreign: 4} {
		test.Must(t, os.WriteFile(path, pattern(b, 1<<20), 0o600))
	}
	command(t, st, "create", "a", "--base", base)
	command(t, st, "import", foreign, "img")
	command(t, st, "create", "b", "--from", "img")
	user := asOrdinaryUser(t, dir)
	g := backendtest.NewGuest(t, dir)
	test.Must(t, errors.Join(os.Chmod(dir, 0o755), os.Chmod(filepath.Join(dir, "agent"), 0o777),
		os.Chmod(filepath.Join(dir, "qmp"), 0o777)))
	p := start(t, st, func(c *exec.Cmd) {
		user(c)
		c.Env = append(c.Env, probeEnv+"="+probe)
	}, "serve", "a", "b", "--sandbox", "require")
	f := dial(t, filepath.Join(st, "run", "a.sock"))
	wantAt(t, f, 0, pattern(3, 8192))
	writeAt(t, f, 512, pattern(5, 512))

	for what, want := range map[string]string{
		"read " + base: "<nil>", "write " + base: "EACCES", "read " + foreign: "EACCES",
		"truncate " + base: "EACCES", "make " + dir + "/new": "EACCES",
		"remove " + foreign: "EACCES", "execute /bin/true": "EACCES",
		"execute " + dir + "/cowblk": "EACCES", "read /etc/passwd": "EACCES",
		"read " + st + "/images/img/data": "<nil>", "write " + st + "/images/img/data": "EACCES",
		"remove " + st + "/images/img/image.json": "EACCES",
		"write " + st + "/disks/a/disk.json":      "<nil>", "remove " + st + "/lock": "EACCES",
	} {
		op, path, _ := strings.Cut(what, " ")
		if got := probeSandboxOp(t, probe, op, path); got != want {
			t.Errorf("%s: %s, expected %s", what, got, want)
		}
	}
	noNewPrivileges(t, p.cmd.Process.Pid)

	c, err := control.Dial(filepath.Join(st, "run", "a.ctl"), 5*time.Second)
	test.Must(t, err)
	// Promotions of one disk and of both, quiesced through sockets elsewhere.
	for i, args := range []daemon.PromoteArgs{
		{Disks: []string{"a"}}, {Disks: []string{"a", "b"}}, {Disks: []string{"a"},
			Spec: g.Spec("guest")}, {Disks: []string{"a", "b"}, Spec: g.Spec("pause")},
	} {
		args.Tag = fmt.Sprintf("t%d", i)
		writeAt(t, f, 4096, pattern(byte(10+i), 4096))
		test.Must(t, c.Run(t.Context(), "cow-promote", args, nil), "promotion", i)
		waitSealed(t, c)
	}
	if g.Quiesced() {
		t.Error("the guest is quiesced")
	}
	writeAt(t, f, 4096, pattern(20, 512))
	wantAt(t, f, 4096, append(pattern(20, 512), pattern(13, 3584)...))

	// A clone and tags of both disks over NBD, on sockets that were made after the confinement.
	commandOf(t, user, st, "create", "clone", "--from", "a@t1")
	commandOf(t, user, st, "promote", "clone", "--tag", "c")
	for _, name := range []string{"unix:" + filepath.Join(st, "run", "nbd"), "tcp:localhost:0"} {
		test.Must(t, c.Run(t.Context(), "nbd-server-start", map[string]string{"addr": name}, nil))
	}
	var outside *control.Error
	err = c.Run(t.Context(), "nbd-server-start",
		map[string]string{"addr": "unix:" + filepath.Join(dir, "nbd")}, nil)
	if !errors.As(err, &outside) || !strings.Contains(outside.Desc, "--sandbox") ||
		!strings.Contains(outside.Desc, filepath.Join(st, "run")) {
		t.Errorf("a socket elsewhere: %v", err)
	}
	for _, name := range []string{"clone@c", "a@t1"} {
		var info struct{ URIs []string }
		test.Must(t, c.Run(t.Context(), "cow-export-add", map[string]string{"name": name}, &info),
			"export of", name)
		for _, uri := range info.URIs {
			checkCopy(t, uri, append(append(append(pattern(3, 512), pattern(5, 512)...),
				pattern(3, 3072)...),
				append(pattern(11, 4096), pattern(3, 1<<20-8192)...)...))
		}
	}
	noNewPrivileges(t, p.cmd.Process.Pid) // of threads started since
	f.Close()
	p.end(t)
	if left, _ := filepath.Glob(filepath.Join(st, "run", "*")); len(left) > 0 {
		t.Errorf("left behind: %v\n%s", left, p.log.String())
	}
	// A stopped disk can be rolled back and served again.
	commandOf(t, user, st, "rollback", "a@t0", "--yes", "--discard-tags")
}

// commandOf runs a command as a user, as prepared by asOrdinaryUser.
func commandOf(t *testing.T, user func(*exec.Cmd), st string, args ...string) {
	t.Helper()
	p := start(t, st, user, args...)
	if code := p.outcome(t); code != exitOK {
		t.Fatalf("cowblk %q: exit code %d\n%s", args, code, p.log.String())
	}
}

// noNewPrivileges checks every thread of a process.
func noNewPrivileges(t *testing.T, pid int) {
	t.Helper()
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	if len(files) < 3 {
		t.Errorf("process %d has %d threads", pid, len(files))
	}
	for _, file := range files {
		status, err := os.ReadFile(file)
		if err == nil && !strings.Contains(string(status), "NoNewPrivs:\t1\n") {
			t.Errorf("%s does not say that NoNewPrivs is 1", file)
		}
	}
}

// Layers named by a device-mapper table lie elsewhere. A head among them is reopened when it is
// sealed, and with --cache none its data once more.
func TestServeConfinedTable(t *testing.T) {
	for _, cache := range []string{"writeback", "none"} {
		dir, st := shortDir(t), shortDir(t)
		for _, name := range []string{"base", "map", "data"} {
			test.Must(t, os.WriteFile(filepath.Join(dir, name), make([]byte, 1<<20), 0o600))
		}
		line := fmt.Sprintf("0 2048 cow %s 0 %s %s 0", filepath.Join(dir, "base"),
			filepath.Join(dir, "map"), filepath.Join(dir, "data"))
		command(t, st, "create", "a", "--table", line)
		p := start(t, st, nil, "serve", "a", "--cache", cache, "--sandbox", "require")
		f := dial(t, filepath.Join(st, "run", "a.sock"))
		c, err := control.Dial(filepath.Join(st, "run", "a.ctl"), 5*time.Second)
		test.Must(t, err)
		for i := range 3 {
			writeAt(t, f, 4096, pattern(byte(i+1), 4096))
			test.Must(t, c.Run(t.Context(), "cow-promote", daemon.PromoteArgs{Disks: []string{"a"},
				Tag: strconv.Itoa(i)}, nil))
			waitSealed(t, c)
			wantAt(t, f, 4096, pattern(byte(i+1), 4096))
		}
		m := manifestOf(t, st, "a")
		waitChecksums(t, layer.Paths{Map: m.Layers[0].Map, Data: m.Layers[0].Data,
			Checksums: filepath.Join(st, "layers", m.Layers[0].UUID.String(), "sums")})
		f.Close()
		p.end(t)
	}
}

// A raw file: nothing else is within reach.
func TestServeConfinedRaw(t *testing.T) {
	dir := shortDir(t)
	raw, socket, probe := filepath.Join(dir, "raw"), filepath.Join(dir, "s"),
		filepath.Join(dir, "probe")
	test.Must(t, os.WriteFile(raw, pattern(7, 1<<20), 0o600))
	for mode, want := range map[string]string{"require": "EACCES", "on": "EACCES", "off": "<nil>"} {
		p := start(t, dir, func(c *exec.Cmd) { c.Env = append(c.Env, probeEnv+"="+probe) }, "serve",
			"--blk-file", raw, "--socket-path", socket, "--sandbox", mode)
		f := dial(t, socket)
		writeAt(t, f, 0, pattern(8, 4096))
		wantAt(t, f, 0, append(pattern(8, 4096), pattern(7, 4096)...))
		if got := probeSandboxOp(t, probe, "read", raw); got != want {
			t.Errorf("--sandbox %s: %s", mode, got)
		}
		f.Close()
		p.end(t)
		os.Remove(probe)
	}
}

// Without landlock, "on" serves and warns; "require" does not start and leaves nothing.
func TestServeWithoutLandlock(t *testing.T) {
	dir := storeWith(t, "1M", "a")
	without := func(c *exec.Cmd) { c.Env = append(c.Env, noLandlockEnv+"=1") }
	p := start(t, dir, without, "serve", "a", "--sandbox", "require")
	var exit *exec.ExitError
	if err := p.cmd.Wait(); !errors.As(err, &exit) || exit.ExitCode() != exitFailure ||
		!strings.Contains(p.log.String(), "--sandbox on") {
		t.Errorf("require: %v\n%s", err, p.log.String())
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "run", "*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	p = start(t, dir, without, "serve", "a")
	f := dial(t, filepath.Join(dir, "run", "a.sock"))
	writeAt(t, f, 0, pattern(1, 512))
	c, err := control.Dial(filepath.Join(dir, "run", "a.ctl"), 5*time.Second)
	test.Must(t, err)
	test.Check(t, c.Run(context.Background(), "cow-promote",
		daemon.PromoteArgs{Disks: []string{"a"}}, nil))
	noNewPrivileges(t, p.cmd.Process.Pid)
	f.Close()
	p.end(t)
	if !strings.Contains(p.log.String(), "not confined") {
		t.Errorf("the log does not say so:\n%s", p.log.String())
	}
}
