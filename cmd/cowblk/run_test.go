package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"cowblk/internal/test"
)

// startRun starts "cowblk run" of a disk with a QEMU without a console, and returns both processes.
func startRun(t *testing.T, dir, disk string, more ...string) (p *process, qemu int) {
	t.Helper()
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		t.Skip("no qemu-system-x86_64 (Debian: qemu-system-x86); CI has it")
	}
	pidFile := filepath.Join(t.TempDir(), "pid")
	args := append([]string{"run", disk, "--accel", "tcg", "--memory", "64M", "--vcpus", "1"},
		more...)
	args = append(args, "--", "-display", "none", "-serial", "none", "-monitor", "none", "-S",
		"-pidfile", pidFile)
	p = start(t, dir, nil, args...)
	test.Eventually(t, "QEMU runs", func() bool {
		text, err := os.ReadFile(pidFile)
		if err != nil {
			return false
		}
		qemu, err = strconv.Atoi(strings.TrimSpace(string(text)))
		return err == nil
	})
	t.Cleanup(func() {
		if isAlive(qemu) {
			unix.Kill(qemu, unix.SIGKILL) // left behind by a failed test
		}
	})
	return p, qemu
}

// isAlive reports whether a process runs; a zombie does not.
func isAlive(pid int) bool {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return false
	}
	_, after, _ := strings.Cut(string(stat), ") ")
	return !strings.HasPrefix(after, "Z") && !strings.HasPrefix(after, "X")
}

// However "cowblk run" ends, its QEMU ends with it, and the disk can be run again at once.
func TestRunTakesQEMUWithIt(t *testing.T) {
	for name, signal := range map[string]syscall.Signal{"killed": syscall.SIGKILL,
		"ended": syscall.SIGTERM, "interrupted": syscall.SIGINT, "hung up": syscall.SIGHUP} {
		t.Run(name, func(t *testing.T) {
			dir := storeWith(t, "1M", "vm1")
			p, qemu := startRun(t, dir, "vm1")
			test.Must(t, p.cmd.Process.Signal(signal))
			p.cmd.Wait()
			test.Eventually(t, "QEMU has ended with cowblk run",
				func() bool { return !isAlive(qemu) })
			p, qemu = startRun(t, dir, "vm1")
			p.end(t)
			if isAlive(qemu) {
				t.Error("the second QEMU lives on")
			}
		})
	}
}

// When QEMU ends or is killed, the run ends with an error that says so, and the disk is closed in
// order.
func TestQEMUTakesRunWithIt(t *testing.T) {
	dir := storeWith(t, "1M", "vm1")
	p, qemu := startRun(t, dir, "vm1")
	test.Must(t, unix.Kill(qemu, unix.SIGKILL))
	if code := p.outcome(t); code != exitFailure || !strings.Contains(p.log.String(),
		"signal: killed") {
		t.Errorf("exit %d: %s", code, p.log.String())
	}
	command(t, dir, "rm", "--yes", "vm1")
}

// stop ends a run, QEMU first.
func TestStopOfRun(t *testing.T) {
	dir := storeWith(t, "1M", "vm1")
	p, qemu := startRun(t, dir, "vm1")
	command(t, dir, "stop", "vm1")
	if code := p.outcome(t); code != exitFailure || !strings.Contains(p.log.String(),
		"no longer served") || isAlive(qemu) {
		t.Errorf("exit %d, QEMU runs: %t: %s", code, isAlive(qemu), p.log.String())
	}
}

// A disk that another process serves stays served, and QEMU ends with the run.
func TestRunOfServedDisk(t *testing.T) {
	dir := storeWith(t, "1M", "vm1")
	serving := start(t, dir, nil, "serve", "vm1")
	dial(t, filepath.Join(dir, "run", "vm1.sock")).Close()
	p, qemu := startRun(t, dir, "vm1")
	test.Must(t, p.cmd.Process.Kill())
	p.cmd.Wait()
	test.Eventually(t, "QEMU has ended with cowblk run", func() bool { return !isAlive(qemu) })
	serving.end(t)
}

// A daemonized QEMU would outlive the run.
func TestRunRefusesDaemonize(t *testing.T) {
	s := newScript(t)
	s.command("cowblk create vm1 --size 1M")
	for _, arg := range []string{"-daemonize", "--daemonize"} {
		if out := s.command("cowblk run vm1 -- -S " + arg); !strings.Contains(out, "exit 2") {
			t.Errorf("%s: %s", arg, out)
		}
	}
}
