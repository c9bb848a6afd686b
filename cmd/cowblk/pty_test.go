package main

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cowblk/internal/test"
)

// terminal is a pseudo-terminal with a process on it, as a shell would start it.
type terminal struct {
	master *os.File
	cmd    *exec.Cmd
	ended  chan struct{}

	mu   sync.Mutex
	text strings.Builder // output of the process
}

// onTerminal starts this program with args on a terminal of 80 columns.
func onTerminal(t *testing.T, dir string, args ...string) *terminal {
	t.Helper()
	return typedAhead(t, dir, "", args...)
}

// typedAhead is onTerminal with text that was typed before the program was there.
func typedAhead(t *testing.T, dir, text string, args ...string) *terminal {
	t.Helper()
	return runOnTerminal(t, text, os.Args[0], append([]string{"--store", dir}, args...)...)
}

// runOnTerminal starts any program on a terminal, on which text was typed before.
func runOnTerminal(t *testing.T, text, program string, args ...string) *terminal {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	test.Must(t, err)
	raw, err := master.SyscallConn() // Fd would make it blocking, and Close wait for a reader
	test.Must(t, err)
	var n int
	if cerr := raw.Control(func(fd uintptr) {
		if err = unix.IoctlSetPointerInt(int(fd), unix.TIOCSPTLCK, 0); err == nil {
			n, err = unix.IoctlGetInt(int(fd), unix.TIOCGPTN)
		}
		if err == nil {
			err = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: 80})
		}
	}); cerr != nil || err != nil {
		t.Fatal(cerr, err)
	}
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|syscall.O_NOCTTY, 0)
	test.Must(t, err)
	defer slave.Close()
	p := &terminal{master: master, cmd: exec.Command(program, args...), ended: make(chan struct{})}
	p.typed(t, text)
	p.cmd.Env = append(os.Environ(), mainEnv+"=1")
	p.cmd.Stdin, p.cmd.Stdout, p.cmd.Stderr = slave, slave, slave
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	test.Must(t, p.cmd.Start())
	read := make(chan struct{})
	go func() {
		defer close(read)
		buf := make([]byte, 4096)
		for {
			n, err := master.Read(buf)
			p.mu.Lock()
			p.text.Write(buf[:n])
			p.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	go func() {
		p.cmd.Wait()
		<-read // closed by the last process
		close(p.ended)
	}()
	t.Cleanup(func() {
		p.cmd.Process.Kill()
		master.Close()
		<-p.ended
	})
	return p
}

func (p *terminal) screen() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.text.String()
}

// await waits until the output contains text.
func (p *terminal) await(t *testing.T, text string) {
	t.Helper()
	test.Eventually(t, text+" on the terminal",
		func() bool { return strings.Contains(p.screen(), text) })
}

func (p *terminal) typed(t *testing.T, text string) {
	t.Helper()
	test.Must(t, test.Err(p.master.WriteString(text)))
}

// exit waits for the process's end.
func (p *terminal) exit(t *testing.T) int {
	t.Helper()
	select {
	case <-p.ended:
	case <-time.After(time.Minute):
		t.Fatalf("the process does not end:\n%s", p.screen())
	}
	return p.cmd.ProcessState.ExitCode()
}

// shellArgs returns the arguments that a shell passes to cowblk for line.
func shellArgs(t *testing.T, line string) []string {
	t.Helper()
	out, err := exec.Command("sh", "-c", `cowblk() { for a; do printf '%s\0' "$a"; done; }`+"\n"+
		line).Output()
	test.Must(t, err, line)
	return strings.Split(strings.TrimSuffix(string(out), "\x00"), "\x00")
}
