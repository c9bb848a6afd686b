//go:build integration

package integration

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"cowblk/integration/harness"
	"cowblk/internal/test"
)

// suite is the state that all tests share: made once by TestMain, read-only afterwards.
var suite struct {
	golden      harness.Golden
	store       *harness.Store
	qemus       map[string]harness.QEMU // by release of Debian
	unavailable error                   // why Debian unstable is missing; nil: it is there
}

// Names of the images in the shared store.
const (
	imageGolden = "debian-12"      // the golden image
	imageBIOS   = "debian-12-bios" // the golden root, bootable by BIOS
)

// waitLimit bounds one test. Emulated machines on two busy cores need a fraction of it.
const waitLimit = 15 * time.Minute

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "cowblk-it-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	status := 1
	if err := setUp(dir); err != nil {
		fmt.Fprintln(os.Stderr, "integration tests cannot start:", err)
	} else {
		status = m.Run()
		if err := imagesUnchanged(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			status = 1
		}
	}
	if err := os.RemoveAll(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	os.Exit(status)
}

func setUp(dir string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Minute)
	defer cancel()
	var err error
	if suite.golden, err = harness.NewGolden(ctx); err != nil {
		return err
	}
	if err := findQEMUs(ctx); err != nil {
		return err
	}
	if suite.store, err = harness.NewStore(filepath.Join(dir, "store")); err != nil {
		return err
	}
	bios, err := harness.BIOSImage(ctx)
	if err != nil {
		return err
	}
	for file, name := range map[string]string{suite.golden.QCOW2: imageGolden, bios: imageBIOS} {
		if _, err := suite.store.Run(ctx, "import", "--sha256", file, name); err != nil {
			return err
		}
	}
	return nil
}

// imagesUnchanged verifies the content of both images after all tests.
func imagesUnchanged() error {
	for _, name := range []string{imageGolden, imageBIOS} {
		if err := suite.store.CheckImage(context.Background(), name); err != nil {
			return err
		}
	}
	return nil
}

// env is the environment of one test.
type env struct {
	*testing.T
	ctx  context.Context // ends when a back-end dies unexpectedly, or at the limit
	stop context.CancelCauseFunc
	dir  string // for sockets
}

func newEnv(t *testing.T) *env {
	t.Helper()
	dir, err := os.MkdirTemp("", "cowblk-")
	test.Must(t, err)
	ctx, cancel := context.WithTimeout(context.Background(), waitLimit)
	ctx, stop := context.WithCancelCause(ctx)
	t.Cleanup(func() {
		stop(nil)
		cancel()
		test.Check(t, os.RemoveAll(dir))
	})
	return &env{T: t, ctx: ctx, stop: stop, dir: dir}
}

// must ends the test on an error.
func (e *env) must(err error) {
	e.Helper()
	test.Must(e, err)
}

// cowblk runs one command on the shared store.
func (e *env) cowblk(args ...string) string {
	e.Helper()
	out, err := suite.store.Run(e.ctx, args...)
	e.must(err)
	return out
}

// name returns a disk name that no other test uses.
func (e *env) name(part string) string {
	return strings.ToLower(strings.NewReplacer("/", "-", "#", "-", "_", "-").Replace(e.Name())) +
		"-" + part
}

// disk creates a disk with these options of "cowblk create" and returns its name.
func (e *env) disk(part string, options ...string) string {
	e.Helper()
	name := e.name(part)
	e.cowblk(append([]string{"create", name}, options...)...)
	return name
}

// server is a back-end whose unexpected end fails the test.
type server struct {
	*harness.Backend
	stopping atomic.Bool // the test expects it to end
}

// serve starts the back-end of a disk.
func (e *env) serve(name string) *server {
	e.Helper()
	b, err := suite.store.Serve(e.ctx, name, e.socket(name))
	e.must(err)
	return e.watch(b)
}

// socket returns the path of a disk's socket. It is short: UNIX socket addresses have 108 bytes.
func (e *env) socket(name string) string {
	return filepath.Join(e.dir, name[strings.LastIndexByte(name, '-')+1:]+".sock")
}

func (e *env) watch(b *harness.Backend) *server {
	s := &server{Backend: b}
	watching := make(chan struct{})
	go func() {
		defer close(watching)
		select {
		case <-b.Done():
			if !s.stopping.Load() {
				e.stop(fmt.Errorf("%s ended unexpectedly:\n%s", b.Name, b.Output()))
			}
		case <-e.ctx.Done():
		}
	}()
	e.Cleanup(func() {
		s.stopping.Store(true)
		b.Kill()
		<-watching
	})
	return s
}

// stopServer ends a back-end by SIGTERM and fails the test unless the exit status is 0.
func (e *env) stopServer(s *server) {
	e.Helper()
	s.stopping.Store(true)
	e.must(s.Stop(e.ctx))
}

// start starts a machine with sockets in the test's directory and ends it with the test.
func (e *env) start(o harness.MachineOptions) *harness.Machine {
	e.Helper()
	o.Dir, o.Golden = e.dir, suite.golden
	m, err := harness.StartMachine(e.ctx, o)
	e.must(err)
	e.Cleanup(m.Close)
	return m
}

// emulatorTries is how often boot starts a machine whose QEMU fails with harness.ErrEmulator.
const emulatorTries = 3

// boot starts a machine and waits until its guest is ready.
func (e *env) boot(o harness.MachineOptions) *harness.Machine {
	e.Helper()
	for try := 1; ; try++ {
		m := e.start(o)
		b, took, err := m.Ready(e.ctx)
		if errors.Is(err, harness.ErrEmulator) && try < emulatorTries {
			e.Logf("starting %s again: %v", m, err)
			m.Close()
			continue
		}
		e.must(err)
		e.logBoot(m, b, took)
		return m
	}
}

// ready waits for the next boot of a running machine.
func (e *env) ready(m *harness.Machine) {
	e.Helper()
	b, took, err := m.Ready(e.ctx)
	e.must(err)
	e.logBoot(m, b, took)
}

func (e *env) logBoot(m *harness.Machine, b harness.Boot, took time.Duration) {
	e.Helper()
	e.Logf("%s: Linux %s ready %.1f s after QEMU's start", m, b.Kernel, took.Seconds())
}

// run runs a script in the guest and returns what it printed.
func (e *env) run(m *harness.Machine, script string) string {
	e.Helper()
	out, err := m.Run(e.ctx, script)
	e.must(err)
	return out
}
