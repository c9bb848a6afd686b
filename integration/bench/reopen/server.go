package reopen

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// build is one of the two binaries.
type build struct {
	name, binary string
	// noFlush holds the options of "serve" that turn background flushes off, if the build has such
	// flushes.
	noFlush []string
}

func (b *build) inspect(ctx context.Context) error {
	out, err := exec.CommandContext(ctx, b.binary, "serve", "--help").CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s serve --help: %w\n%s", b.binary, err, out)
	}
	if bytes.Contains(out, []byte("--flush-interval")) {
		b.noFlush = []string{"--flush-interval", "0"}
	}
	return nil
}

// diskName is the name of the only disk of a store.
const diskName = "disk"

func (b *build) create(ctx context.Context, v *volume, size int64) error {
	return tool(ctx, b.binary, "--store", v.store, "create", diskName, "--size",
		strconv.FormatInt(size, 10))
}

// server is a "cowblk serve" process.
type server struct {
	cmd     *exec.Cmd
	socket  string
	started time.Time
	log     bytes.Buffer // valid once the process has ended
}

// serve starts a server and does not wait for its socket.
func (b *build) serve(v *volume, options ...string) (*server, error) {
	args := append([]string{"--store", v.store, "serve", diskName}, options...)
	p := &server{cmd: exec.Command(b.binary, args...), socket: filepath.Join(v.store, "run",
		diskName+".sock"), started: time.Now()}
	p.cmd.Stderr = &p.log
	return p, p.cmd.Start()
}

// kill ends the server with SIGKILL, as the kernel does when memory runs out.
func (p *server) kill() error { return p.end(syscall.SIGKILL) }

// stop ends the server in order.
func (p *server) stop() error { return p.end(syscall.SIGTERM) }

func (p *server) end(s syscall.Signal) error {
	if err := p.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	err := p.cmd.Wait()
	if w, ok := p.cmd.ProcessState.Sys().(syscall.WaitStatus); ok && s == syscall.SIGKILL &&
		w.Signal() == s {
		return nil
	}
	return p.explain(err)
}

func (p *server) explain(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w\n%s", strings.Join(p.cmd.Args, " "), err, p.log.String())
}

// usage holds the resources that a process has used so far.
type usage struct {
	cpu  time.Duration // user and system time of all threads
	peak int64         // peak resident memory, bytes
}

func (p *server) usage() (u usage, err error) {
	// Compute the CPU clock's ID as clock_getcpuclockid(3) does.
	const sched = 2
	var ts unix.Timespec
	pid := p.cmd.Process.Pid
	if err := unix.ClockGettime(int32(^pid<<3|sched), &ts); err != nil {
		return u, fmt.Errorf("CPU clock of process %d: %w", pid, err)
	}
	u.cpu = time.Duration(ts.Nano())
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return u, err
	}
	for line := range strings.Lines(string(status)) {
		if text, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(text), " kB"), 10, 64)
			u.peak = kib << 10
			return u, err
		}
	}
	return u, fmt.Errorf("process %d: no VmHWM in its status", pid)
}
