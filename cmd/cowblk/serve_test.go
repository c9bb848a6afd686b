package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cowblk/backend/daemon"
	"cowblk/cow"
	"cowblk/internal/test"
	"cowblk/vhost/frontend"
)

// mainEnv makes the test binary run as cowblk, for tests that need a separate process.
const mainEnv = "COWBLK_TEST_AS_MAIN"

func TestMain(m *testing.M) {
	if os.Getenv(mainEnv) != "" {
		if at := os.Getenv(killEnv); at != "" {
			os.Exit(killMain(at))
		}
		if spec := os.Getenv(lockHolderEnv); spec != "" {
			os.Exit(lockHolderMain(spec))
		}
		main()
	}
	if signal.Ignored(syscall.SIGHUP) { // nohup: processes of the tests must not ignore it
		signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP)
	}
	os.Exit(m.Run())
}

func TestServeSeveralDisksAndPromoteThem(t *testing.T) {
	dir := storeWith(t, "16M", "a", "b")
	p := start(t, dir, nil, "serve", "a", "b")
	fa, fb := dial(t, filepath.Join(dir, "run", "a.sock")),
		dial(t, filepath.Join(dir, "run", "b.sock"))
	writeAt(t, fa, 0, pattern(1, 8192))
	writeAt(t, fb, 4096, pattern(2, 512))

	command(t, dir, "promote", "a", "b", "--tag", "both")
	writeAt(t, fa, 4096, pattern(3, 512)) // completes a block from the sealed layer
	wantAt(t, fa, 0, append(append(pattern(1, 4096), pattern(3, 512)...), pattern(1, 3584)...))
	wantAt(t, fb, 4096, pattern(2, 512))

	var info struct {
		Layers []struct{ Tag string }
		Live   struct {
			Connected  bool
			Depth      int
			HeadBlocks int `json:"head-blocks"`
		}
	}
	test.Must(t, json.Unmarshal([]byte(command(t, dir, "info", "a", "--json")), &info))
	if len(info.Layers) != 2 || info.Layers[0].Tag != "both" || !info.Live.Connected ||
		info.Live.Depth != 2 || info.Live.HeadBlocks != 1 {
		t.Errorf("info of the served disk: %+v", info)
	}

	// The tag of a served disk can be used at once.
	command(t, dir, "create", "c", "--from", "a@both")
	q, fc := startServing(t, dir, "c")
	wantAt(t, fc, 0, pattern(1, 8192))
	writeAt(t, fc, 0, pattern(9, 4096))
	wantAt(t, fa, 0, pattern(1, 4096))
	q.end(t)
	p.end(t)
}

func TestServeRefusesADiskInUse(t *testing.T) {
	dir := storeWith(t, "1M", "a")
	p := start(t, dir, nil, "serve", "a")
	dial(t, filepath.Join(dir, "run", "a.sock"))
	q := start(t, dir, nil, "serve", "a", "--socket-path", filepath.Join(dir, "other.sock"))
	var exit *exec.ExitError
	if err := q.cmd.Wait(); !errors.As(err, &exit) || exit.ExitCode() != exitInUse ||
		!strings.Contains(q.log.String(), fmt.Sprint(p.cmd.Process.Pid)) {
		t.Errorf("second serve: %v\n%s", err, q.log.String())
	}
	p.end(t)
}

func TestServeStopsOnQuit(t *testing.T) {
	dir := storeWith(t, "1M", "a")
	p, f := startServing(t, dir, "a")
	writeAt(t, f, 0, pattern(5, 4096))
	conn, err := net.Dial("unix", filepath.Join(dir, "run", "a.ctl"))
	test.Must(t, err)
	defer conn.Close()
	fmt.Fprint(conn, `{"execute":"qmp_capabilities"}{"execute":"quit"}`)
	if err := p.cmd.Wait(); err != nil {
		t.Fatalf("%v\n%s", err, p.log.String())
	}
	for _, left := range []string{"a.sock", "a.ctl"} {
		test.ErrorIs(t, test.Err(os.Lstat(filepath.Join(dir, "run", left))), os.ErrNotExist, left)
	}
	q := start(t, dir, nil, "serve", "a")
	wantAt(t, dial(t, filepath.Join(dir, "run", "a.sock")), 0, pattern(5, 4096))
	q.end(t)
}

// QEMU's "Backend program conventions": --print-capabilities, --blk-file, --read-only,
// --socket-path, --fd with a connection and with a listening socket.
func TestBackendProgramConventions(t *testing.T) {
	dir := shortDir(t)
	raw := filepath.Join(dir, "raw")
	test.Must(t, os.WriteFile(raw, pattern(7, 1<<20), 0o600))
	socket := filepath.Join(dir, "s")
	p := start(t, dir, nil, "serve", "--blk-file", raw, "--socket-path", socket)
	writeAt(t, dial(t, socket), 512, pattern(8, 512))
	p.end(t)
	got, err := os.ReadFile(raw)
	if err != nil || !bytes.Equal(got, append(append(pattern(7, 512), pattern(8, 512)...),
		pattern(7, 1<<20-1024)...)) {
		t.Errorf("the raw file does not hold what was written: %v", err)
	}

	p = start(t, dir, nil, "serve", "--blk-file", raw, "--socket-path", socket, "--read-only")
	f := dial(t, socket)
	if f.Offered()&frontend.FeatureRO == 0 {
		t.Error("read-only is not offered")
	}
	if _, err := f.Driver(0).WriteAt(pattern(1, 512), 0); err == nil {
		t.Error("a read-only disk was written")
	}
	p.end(t)

	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	test.Must(t, err)
	theirs, ours := os.NewFile(uintptr(pair[0]), "theirs"), os.NewFile(uintptr(pair[1]), "ours")
	p = start(t, dir, func(c *exec.Cmd) { c.ExtraFiles = []*os.File{theirs} }, "serve",
		"--blk-file", raw, "--fd", "3")
	theirs.Close()
	conn, err := net.FileConn(ours)
	test.Must(t, err)
	ours.Close()
	f, err = frontend.New(conn.(*net.UnixConn), frontend.Options{})
	test.Must(t, err)
	wantAt(t, f, 512, pattern(8, 512))
	f.Close()
	if err := p.cmd.Wait(); err != nil { // the process ends with the connection
		t.Errorf("--fd with a connection: %v\n%s", err, p.log.String())
	}

	// As started by QEMU's conventions, under the name in integration/50-cowblk.json.
	var registered struct{ Type, Binary string }
	text, err := os.ReadFile("../../integration/50-cowblk.json")
	test.Must(t, err)
	if err := json.Unmarshal(text, &registered); err != nil || registered.Type != "block" {
		t.Fatalf("%+v, %v", registered, err)
	}
	binary := filepath.Join(dir, filepath.Base(registered.Binary))
	test.Must(t, os.Symlink(os.Args[0], binary))
	cmd := exec.Command(binary, "--print-capabilities")
	cmd.Env = append(os.Environ(), mainEnv+"=1")
	out, err := cmd.Output()
	test.Must(t, err)
	var can struct {
		Type     string
		Features []string
	}
	test.Must(t, json.Unmarshal(out, &can))
	if can.Type != "block" || !slices.Equal(can.Features, []string{"read-only", "blk-file"}) {
		t.Errorf("%+v", can)
	}

	l, file := listener(t, filepath.Join(dir, "l"))
	p = start(t, dir, func(c *exec.Cmd) { c.ExtraFiles = []*os.File{file} }, "serve", "--blk-file",
		raw, "--fd", "3")
	wantAt(t, dial(t, l), 512, pattern(8, 512))
	p.end(t)
}

// listener makes a listening socket for a child.
func listener(t *testing.T, path string) (string, *os.File) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	test.Must(t, err)
	l.SetUnlinkOnClose(false)
	f, err := l.File()
	test.Must(t, err)
	l.Close()
	t.Cleanup(func() { f.Close() })
	return path, f
}

// systemd: sockets by name in LISTEN_FDNAMES, readiness on NOTIFY_SOCKET.
func TestSocketActivationAndReadiness(t *testing.T) {
	dir := storeWith(t, "1M", "a", "b")
	pathA, fileA := listener(t, filepath.Join(dir, "from-systemd-a"))
	pathB, fileB := listener(t, filepath.Join(dir, "from-systemd-b"))
	notify, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "notify"),
		Net: "unixgram"})
	test.Must(t, err)
	defer notify.Close()
	// LISTEN_PID must be the process's own, so a shell sets it and executes cowblk.
	p := start(t, dir, func(c *exec.Cmd) {
		c.Args = append([]string{"sh", "-c", `LISTEN_PID=$$ exec "$0" "$@"`, c.Path}, c.Args[1:]...)
		c.Path = "/bin/sh"
		c.ExtraFiles = []*os.File{fileB, fileA}
		c.Env = append(c.Env, "LISTEN_FDS=2", "LISTEN_FDNAMES=b:a",
			"NOTIFY_SOCKET="+filepath.Join(dir, "notify"))
	}, "serve", "a", "b")
	buf := make([]byte, 64)
	notify.SetReadDeadline(time.Now().Add(20 * time.Second))
	n, err := notify.Read(buf)
	// see TestRestartWithDescriptorStore
	if strings.HasPrefix(string(buf[:n]), "FDSTORE=1\nFDNAME=.control") {
		n, err = notify.Read(buf)
	}
	if err != nil || string(buf[:n]) != "READY=1" {
		t.Fatalf("readiness: %q, %v\n%s", buf[:n], err, p.log.String())
	}
	writeAt(t, dial(t, pathA), 0, pattern(1, 512))
	writeAt(t, dial(t, pathB), 0, pattern(2, 512))
	p.end(t)
	test.Check(t, test.Err(os.Lstat(pathA)), "systemd's socket was removed")
	for name, b := range map[string]byte{"a": 1, "b": 2} {
		p := start(t, dir, nil, "serve", name)
		wantAt(t, dial(t, filepath.Join(dir, "run", name+".sock")), 0, pattern(b, 512))
		p.end(t)
	}
}

func TestServeUsage(t *testing.T) {
	dir := t.TempDir()
	for _, args := range [][]string{
		{"serve"}, {"serve", "a", "a"}, {"serve", "a", "b", "--socket-path", "s"},
		{"serve", "--blk-file", "f"},
		{"serve", "a", "--blk-file", "f", "--socket-path", "s"}, {"serve", "a", "--fd", "3",
			"--socket-path", "s"},
		{"serve", "a", "--queues", "0"}, {"serve", "a", "--queues", "257"},
		{"serve", "a", "b", "--serial", "x"},
		{"serve", "a", "--cache", "unsafe"}, {"serve", "a", "--cache", ""}, {"serve", "a", "--poll",
			"2ms"}, {"serve", "a", "--poll", "-1us"},
		{"run", "a", "--cache", "on"}, {"run", "a", "--poll", "50"},
		{"serve", "a", "--flush-interval", "-1s"}, {"serve", "a", "--flush-interval", "99ms"},
		{"serve", "a", "--flush-interval", "24h1s"},
		{"serve", "a", "--cache", "writethrough", "--writeback-without-flush"},
		{"run", "a", "--cache", "directsync", "--writeback-without-flush"},
	} {
		var errs bytes.Buffer
		if code := run(append([]string{"--store", dir}, args...),
			testApp(&errs, &errs)); code != exitUsage {
			t.Errorf("%v: exit %d: %s", args, code, errs.String())
		}
	}
}

// A driver that negotiates neither FLUSH nor CONFIG_WCE has no write cache, unless the option asks
// for one.
func TestServeWritebackWithoutFlush(t *testing.T) {
	dir := storeWith(t, "16M", "a")
	for _, args := range [][]string{{"serve", "a"}, {"serve", "a", "--writeback-without-flush"}} {
		with := len(args) > 2
		p := start(t, dir, nil, args...)
		c, _ := dialControl(t, dir, "a")
		f, err := frontend.Dial(filepath.Join(dir, "run", "a.sock"),
			frontend.Options{Refuse: frontend.FeatureFlush | frontend.FeatureConfigWCE})
		test.Must(t, err)
		writeAt(t, f, 0, pattern(1, 4096))
		var disks []daemon.DiskInfo
		if err := c.Run(context.Background(), "query-cow-disks", nil, &disks); err != nil ||
			disks[0].WriteCache != with {
			t.Errorf("%v: %+v, %v", args, disks, err)
		}
		if s := changeSettings(t, c, `{}`); s.Disks[0].NoFlush != with || !s.Disks[0].WriteCache {
			t.Errorf("%v: %+v", args, s)
		}
		f.Close()
		p.end(t)
	}
}

// --flush-interval reaches the engine.
func TestFlushIntervalFlag(t *testing.T) {
	for given, want := range map[time.Duration]time.Duration{0: -1, time.Second: time.Second} {
		f := dataFlags{flushInterval: given}
		if err := f.check("serve"); err != nil || f.Cow.FlushInterval != want {
			t.Errorf("%v became %v, expected %v: %v", given, f.Cow.FlushInterval, want, err)
		}
	}
	cmd := newServe(&app{})
	test.Equal(t, cmd.Flags().Lookup("flush-interval").DefValue, cow.DefaultFlushInterval.String(),
		"default")
}

// The modes of --cache: the features that the guest sees, the answer of the monitor, and the data
// written.
func TestServeCacheModes(t *testing.T) {
	dir := storeWith(t, "16M", "a")
	for i, mode := range []string{"writeback", "writethrough", "none", "directsync"} {
		p := start(t, dir, nil, "serve", "a", "--cache", mode, "--poll", "0")
		c, _ := dialControl(t, dir, "a")
		f := dial(t, filepath.Join(dir, "run", "a.sock"))
		if i > 0 {
			wantAt(t, f, 4096, pattern(byte(i), 1536))
		}
		writeAt(t, f, 4096, pattern(byte(i+1), 1536))
		wantAt(t, f, 3584, append(pattern(0, 512), pattern(byte(i+1), 1536)...))
		var disks []daemon.DiskInfo
		err := c.Run(context.Background(), "query-cow-disks", nil, &disks)
		if err != nil || disks[0].Cache.String() != mode || disks[0].WriteCache != (i%2 == 0) {
			t.Errorf("%s: %+v, %v", mode, disks, err)
		}
		if s := changeSettings(t, c, `{}`); s.Disks[0].Cache.String() != mode ||
			s.Disks[0].Poll != 0 {
			t.Errorf("%s: %+v", mode, s)
		}
		f.Close()
		p.end(t)
	}
}
