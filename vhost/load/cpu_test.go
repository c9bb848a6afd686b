package load

import (
	"os"
	"os/exec"
	"testing"
	"time"

	"cowblk/internal/test"
)

// Every method of reading a process's CPU time sees the time it has used.
func TestProcessTime(t *testing.T) {
	for name, m := range map[string]func(int) (time.Duration, error){
		"clock": clockTime, "schedstat": schedTime, "stat": statTime} {
		before, err := m(os.Getpid())
		test.Must(t, err, name)
		burn(t, 50*time.Millisecond)
		after, err := m(os.Getpid())
		if err != nil || after-before < 30*time.Millisecond {
			t.Errorf("%s: %v before, %v after 50 ms of work; %v", name, before, after, err)
		}
	}
}

// burn uses CPU time, for as long as that takes.
func burn(t *testing.T, d time.Duration) {
	t.Helper()
	start, err := clockTime(os.Getpid())
	for now := start; err == nil && now < start+d; {
		now, err = clockTime(os.Getpid())
	}
	test.Must(t, err)
}

func TestNoSuchProcess(t *testing.T) {
	cmd := exec.Command("true")
	test.Must(t, cmd.Run())
	for _, pid := range []int{0, cmd.Process.Pid} {
		if p := newProcess(pid); p.err == nil || p.cpuTime() != 0 {
			t.Errorf("process %d: %v", pid, p.err)
		}
	}
}
