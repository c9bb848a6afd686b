package daemon

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"cowblk/internal/test"
	"cowblk/vhost/frontend"
)

// stranger is another process that has connected to a socket and says nothing.
type stranger struct {
	cmd *exec.Cmd
	in  io.WriteCloser
}

func connectStranger(t *testing.T, socket string) *stranger {
	t.Helper()
	c := &stranger{cmd: exec.Command("socat", "UNIX-CONNECT:"+socket, "STDIN")}
	in, err := c.cmd.StdinPipe()
	test.Must(t, err)
	c.in = in
	test.Must(t, c.cmd.Start())
	t.Cleanup(func() {
		if c.cmd.ProcessState == nil {
			c.leave(t)
		}
	})
	return c
}

func (c *stranger) leave(t *testing.T) {
	t.Helper()
	c.in.Close()
	test.Must(t, c.cmd.Process.Kill())
	c.cmd.Wait()
}

func (c *stranger) pid() int32 { return int32(c.cmd.Process.Pid) }

func awaitInfo(t *testing.T, e *Export, what string, ok func(DiskInfo) bool) {
	t.Helper()
	test.Eventually(t, what, func() bool { return ok(e.info()) })
}

// A second front-end on a disk waits until the first has disconnected, and is then served, unless
// it has disconnected too. A log line names the process that uses the disk and since when.
func TestSecondFrontEnd(t *testing.T) {
	if _, err := exec.LookPath("socat"); err != nil {
		t.Skip("socat is not installed; make deps installs it")
	}
	s := start(t, newStore(t, nil, "test"), Options{}, "test")
	log, e := s.log, s.exports[0]
	f := s.dial("test", frontend.Options{})
	defer f.Close()
	me := os.Getpid()
	if i := e.info(); i.FrontEnd == nil || int(i.FrontEnd.PID) != me || i.FrontEnd.Name == "" ||
		i.Waiting != nil {
		t.Errorf("%+v", i)
	}
	first := connectStranger(t, e.path)
	waiting := fmt.Sprintf("process %d (socat) of user %d", first.pid(), os.Getuid())
	test.Eventually(t, "the second is logged",
		func() bool { return slices.Equal(log.Values("waiting"), []string{waiting}) }, log)
	if holder := log.Values("held_by")[0]; !strings.HasPrefix(holder, fmt.Sprintf("process %d (",
		me)) || log.Values("held_since")[0] == (time.Time{}).String() {
		t.Errorf("held by whom, and since when: %s", log)
	}
	if i := e.info(); i.Waiting == nil || i.Waiting.PID != first.pid() ||
		int(i.FrontEnd.PID) != me {
		t.Errorf("%+v", i)
	}
	first.leave(t)
	awaitInfo(t, e, "nobody waits", func(i DiskInfo) bool { return i.Waiting == nil })
	test.Eventually(t, "its end is logged",
		func() bool { return slices.Contains(log.Values("front_end"), waiting) }, log)
	second := connectStranger(t, e.path)
	awaitInfo(t, e, "another waits", func(i DiskInfo) bool {
		return i.Waiting != nil && i.Waiting.PID == second.pid()
	})
	test.Check(t, test.Err(f.Driver(0).ReadAt(make([]byte, 512), 0)), "the one that is served")
	test.Must(t, f.Close())
	awaitInfo(t, e, "the other is served", func(i DiskInfo) bool {
		return i.FrontEnd != nil && i.FrontEnd.PID == second.pid() && i.Waiting == nil
	})
	test.Eventually(t, "advice",
		func() bool { return slices.Equal(log.Values("advice"), []string{reconnectAdvice}) }, log)
	second.leave(t)
	awaitInfo(t, e, "nobody is served", func(i DiskInfo) bool {
		return i.FrontEnd == nil && !i.Connected
	})
	s.dial("test", frontend.Options{}).Close()
}

// The front-end that connects anew before its former connection has ended is no stranger.
func TestFrontEndComesAgain(t *testing.T) {
	s := start(t, newStore(t, nil, "test"), Options{}, "test")
	log := s.log
	f := s.dial("test", frontend.Options{})
	done := make(chan *frontend.Frontend)
	go func() { done <- s.dial("test", frontend.Options{}) }()
	test.Eventually(t, "both connections are logged",
		func() bool { return len(log.Values("front_end")) == 2 }, log)
	test.Must(t, f.Close())
	again := <-done
	if log.Values("waiting") != nil {
		t.Error(log)
	}
	test.Must(t, again.Close())
}
