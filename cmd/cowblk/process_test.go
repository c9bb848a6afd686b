package main

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"cowblk/cow/store"
	"cowblk/internal/test"
	"cowblk/vhost/frontend"
)

// process is a cowblk process and its log.
type process struct {
	cmd *exec.Cmd
	log bytes.Buffer
}

// start runs cowblk on the store dir until the test ends.
func start(t testing.TB, dir string, change func(*exec.Cmd), args ...string) *process {
	t.Helper()
	p := &process{cmd: exec.Command(os.Args[0], append([]string{"--store", dir}, args...)...)}
	p.cmd.Env = append(os.Environ(), mainEnv+"=1")
	p.cmd.Stderr = &p.log
	if change != nil {
		change(p.cmd)
	}
	test.Must(t, p.cmd.Start())
	t.Cleanup(func() {
		if p.cmd.ProcessState == nil {
			p.cmd.Process.Kill()
			p.cmd.Wait()
		}
	})
	return p
}

// end sends SIGTERM and expects exit code 0.
func (p *process) end(t testing.TB) {
	t.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil &&
		!errors.Is(err, os.ErrProcessDone) {
		t.Fatal(err)
	}
	if err := p.cmd.Wait(); err != nil {
		t.Fatalf("cowblk: %v\n%s", err, p.log.String())
	}
}

// dial connects a driver as soon as the socket exists.
func dial(t testing.TB, socket string) *frontend.Frontend {
	t.Helper()
	return dialWith(t, socket, frontend.Options{})
}

func dialWith(t testing.TB, socket string, o frontend.Options) (f *frontend.Frontend) {
	t.Helper()
	test.Eventually(t, socket+" is served", func() (ok bool) {
		var err error
		f, err = frontend.Dial(socket, o)
		return err == nil
	})
	t.Cleanup(func() { f.Close() })
	return f
}

// testApp returns an app without input, environment, terminal and KVM.
func testApp(out, errs io.Writer) *app {
	return &app{
		in: strings.NewReader(""), out: out, err: errs, getenv: func(string) string { return "" },
		terminal: func(any) bool { return false }, kvm: func() bool { return false },
	}
}

// storeWith returns the directory of a store with disks of one size; its path is short enough for
// sockets.
func storeWith(t testing.TB, size string, disks ...string) string {
	t.Helper()
	dir := shortDir(t)
	for _, name := range disks {
		command(t, dir, "create", name, "--size", size)
	}
	return dir
}

// command runs cowblk in this process and returns its standard output.
func command(t testing.TB, dir string, args ...string) string {
	t.Helper()
	var out, errs bytes.Buffer
	if code := run(append([]string{"--store", dir}, args...),
		testApp(&out, &errs)); code != exitOK {
		t.Fatalf("cowblk %v: exit %d\n%s", args, code, errs.String())
	}
	return out.String()
}

// manifestOf reads the manifest of a disk of the store dir.
func manifestOf(t testing.TB, dir, disk string) *store.Manifest {
	t.Helper()
	s, err := store.Open(dir, store.Options{})
	test.Must(t, err)
	m, err := s.Disk(disk)
	test.Must(t, err)
	return m
}

// shortDir returns a directory whose path is short enough for sockets.
func shortDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "cowblk")
	test.Must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func pattern(b byte, n int) []byte { return bytes.Repeat([]byte{b}, n) }

func wantAt(t testing.TB, f *frontend.Frontend, off int64, want []byte) {
	t.Helper()
	got := make([]byte, len(want))
	test.Must(t, test.Err(f.Driver(0).ReadAt(got, off)))
	if !bytes.Equal(got, want) {
		t.Errorf("%d bytes at %d are not what was written", len(want), off)
	}
}

func writeAt(t testing.TB, f *frontend.Frontend, off int64, p []byte) {
	t.Helper()
	test.Must(t, test.Err(f.Driver(0).WriteAt(p, off)))
}
