package main

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"

	"cowblk/backend/client"
	"cowblk/backend/control"
	"cowblk/internal/test"
)

// The time limit of watch also ends its dial of a process that does not answer: another dial that
// begins at the same time, with half the time that queries have, ends later.
func TestWatchOfASuspendedProcess(t *testing.T) {
	dir := shortDir(t)
	command(t, dir, "create", "d", "--size", "1M")
	p, _ := startServing(t, dir, "d")
	path := infoOf(t, dir, "d").Serving.Control
	test.Must(t, p.cmd.Process.Signal(syscall.SIGSTOP))
	defer p.cmd.Process.Signal(syscall.SIGCONT)
	test.Eventually(t, "the process to stop", func() bool {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
		return err == nil && strings.Contains(string(stat), ") T ")
	})
	dialled := make(chan error, 1)
	go func() {
		_, err := control.Dial(path, client.QueryTimeout/2)
		dialled <- err
	}()
	if code, text := outcomeOf(t, dir, "watch", "d", "--timeout", "100ms"); code != exitTimeout {
		t.Errorf("exit %d: %s", code, text)
	}
	select {
	case err := <-dialled:
		t.Errorf("watch outlived a dial: %v", err)
	default:
	}
}
