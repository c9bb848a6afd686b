package daemon

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"testing"

	"cowblk/backend/backendtest"
	"cowblk/cow/vfs"
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

// A second front-end on a disk waits until the first has gone. It is told of, with who has the disk
// and since when, and is served then, unless it has given up.
func TestSecondFrontEnd(t *testing.T) {
	if _, err := exec.LookPath("socat"); err != nil {
		t.Skip("socat is not installed; make deps installs it")
	}
	log := &backendtest.Log{}
	s := serveOn(t, vfs.OS{}, func(s *served) { s.export.log = slog.New(slog.NewTextHandler(log, nil)) })
	f := s.dial(frontend.Options{})
	defer f.Close()
	me := os.Getpid()
	if i := s.export.info(); i.FrontEnd == nil || int(i.FrontEnd.PID) != me || i.FrontEnd.Name == "" || i.Waiting != nil {
		t.Errorf("%+v", i)
	}
	first := connectStranger(t, s.socket)
	log.Await(t, fmt.Sprintf(`level=WARN msg="another front-end waits until the present one leaves" waiting="process %d (socat) of user %d" held_by="process %d (`, first.pid(), os.Getuid(), me))
	if !strings.Contains(log.String(), "held_since=2") {
		t.Errorf("since when: %s", log)
	}
	if i := s.export.info(); i.Waiting == nil || i.Waiting.PID != first.pid() || int(i.FrontEnd.PID) != me {
		t.Errorf("%+v", i)
	}
	first.leave(t)
	awaitInfo(t, s.export, "nobody waits", func(i DiskInfo) bool { return i.Waiting == nil })
	log.Await(t, "the waiting front-end has left")
	second := connectStranger(t, s.socket)
	awaitInfo(t, s.export, "another waits", func(i DiskInfo) bool { return i.Waiting != nil && i.Waiting.PID == second.pid() })
	if _, err := f.Driver(0).ReadAt(make([]byte, 512), 0); err != nil {
		t.Errorf("the one that is served: %v", err)
	}
	test.Must(t, f.Close())
	awaitInfo(t, s.export, "the other is served", func(i DiskInfo) bool { return i.FrontEnd != nil && i.FrontEnd.PID == second.pid() && i.Waiting == nil })
	log.Await(t, "msg=\"front-end disconnected\"")
	if !strings.Contains(log.String(), "virsh attach-device") || !strings.Contains(log.String(), "cowblk attach") {
		t.Errorf("no advice: %s", log)
	}
	second.leave(t)
	awaitInfo(t, s.export, "nobody is served", func(i DiskInfo) bool { return i.FrontEnd == nil && !i.Connected })
	s.dial(frontend.Options{}).Close()
}

// The front-end that connects anew before its former connection has ended is no stranger.
func TestFrontEndComesAgain(t *testing.T) {
	log := &backendtest.Log{}
	s := serveOn(t, vfs.OS{}, func(s *served) { s.export.log = slog.New(slog.NewTextHandler(log, nil)) })
	f := s.dial(frontend.Options{})
	done := make(chan *frontend.Frontend)
	go func() { done <- s.dial(frontend.Options{}) }()
	log.Await(t, "the front-end connects again")
	test.Must(t, f.Close())
	again := <-done
	if strings.Contains(log.String(), "another front-end") {
		t.Error(log)
	}
	test.Must(t, again.Close())
}
