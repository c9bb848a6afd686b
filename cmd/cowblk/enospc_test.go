package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	goqmp "github.com/digitalocean/go-qemu/qmp"
	"golang.org/x/sys/unix"

	"cowblk/backend/control"
	"cowblk/backend/daemon"
	"cowblk/internal/test"
	"cowblk/vhost/frontend"
)

// enospcGuest is disk a on a small file system, served with options, and a front-end that has
// written until the space was used up. The last write waits or has failed.
type enospcGuest struct {
	t     *testing.T
	small string // the file system
	dir   string // the store
	p     *process
	f     *frontend.Frontend
	n     int                   // acknowledged writes
	done  []frontend.Completion // the completion of the last write, if it has one

	control *control.Client
	events  <-chan goqmp.Event
}

const enospcWrite = 64 << 10 // bytes

func newENOSPCGuest(t *testing.T, args ...string) *enospcGuest {
	t.Helper()
	s := &enospcGuest{t: t, small: smallFS(t, 4<<20)}
	s.dir = filepath.Join(s.small, "st")
	command(t, s.dir, "create", "a", "--size", "64M")
	test.Must(t, os.WriteFile(filepath.Join(s.small, "ballast"), make([]byte, 2<<20), 0o600))
	s.p = start(t, s.dir, nil, append([]string{"serve", "a"}, args...)...)
	s.control, s.events = dialControl(t, s.dir, "a")
	s.f = dial(t, filepath.Join(s.dir, "run", "a.sock"))
	return s
}

// fill writes until a write is not acknowledged, and returns the event about it.
func (s *enospcGuest) fill() (event map[string]any) {
	s.t.Helper()
	d := s.f.Driver(0)
	limit := time.After(waitTimeout)
	for ; ; s.n++ {
		copy(d.Buffer(0), pattern(byte(s.n+1), enospcWrite))
		test.Must(s.t, d.Submit(0, frontend.OpWrite, int64(s.n)*enospcWrite, enospcWrite))
		test.Must(s.t, d.Kick())
		for done := d.Poll(nil); ; done = d.Poll(nil) {
			if len(done) == 1 && done[0].Status == frontend.StatusOK {
				break
			}
			s.done = append(s.done, done...)
			select {
			case e := <-s.events:
				if e.Event == "COW_IO_ERROR" {
					return e.Data
				}
			case <-limit:
				s.t.Fatalf("write %d neither ends nor waits for space", s.n)
			case <-time.After(time.Millisecond):
			}
		}
	}
}

// waits returns the number of requests that wait for space, as the daemon reports it.
func (s *enospcGuest) waits() int {
	s.t.Helper()
	var disks []daemon.DiskInfo
	if err := s.control.Run(context.Background(), "query-cow-disks", nil, &disks); err != nil ||
		len(disks) != 1 {
		s.t.Fatalf("%+v, %v", disks, err)
	}
	return disks[0].Parked
}

// ended takes the last write from the ring and checks its status.
func (s *enospcGuest) ended(want byte) {
	s.t.Helper()
	d, done := s.f.Driver(0), s.done
	if len(done) == 0 {
		test.Must(s.t, d.Wait())
		done = d.Poll(nil)
	}
	if len(done) != 1 || done[0].Status != want {
		s.t.Fatalf("%+v, expected status %d", done, want)
	}
	if want == frontend.StatusOK {
		s.n++
	}
}

// free makes space on the file system.
func (s *enospcGuest) free() {
	s.t.Helper()
	test.Must(s.t, os.Remove(filepath.Join(s.small, "ballast")))
}

// check reads and compares all acknowledged writes.
func (s *enospcGuest) check(f *frontend.Frontend) {
	s.t.Helper()
	for i := range s.n {
		wantAt(s.t, f, int64(i)*enospcWrite, pattern(byte(i+1), enospcWrite))
	}
}

// status is QEMU's RunState.
func (e *emulator) status() string {
	e.t.Helper()
	var s struct{ Status string }
	e.run("query-status", nil, &s)
	return s.Status
}

// A full file system: acknowledged writes are kept, reads work, and other writes behave as
// --on-enospc says.
func TestFullFileSystem(t *testing.T) {
	if !canMount(t) {
		return
	}
	for name, tt := range map[string]func(t *testing.T){
		"report": enospcFails, "stop": enospcPauses, "guest that was not running": enospcNotRunning,
		"no guest to pause": enospcWaits, "takeover and kill": enospcTakenOver,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tt(t)
		})
	}
}

func enospcFails(t *testing.T) {
	s := newENOSPCGuest(t)
	if e := s.fill(); e["nospace"] != true || e["action"] != "report" ||
		!strings.Contains(e["reason"].(string), "no space left") {
		t.Errorf("%+v", e)
	}
	s.ended(frontend.StatusIOErr)
	s.check(s.f)
	s.free()
	writeAt(t, s.f, int64(s.n)*enospcWrite, pattern(byte(s.n+1), enospcWrite))
	s.n++
	s.check(s.f)
	s.f.Close()
	s.p.end(t)
}

// QEMU runs no guest here; its processors run or are stopped.
func enospcPauses(t *testing.T) {
	qemu := startQEMU(t, shortDir(t))
	qemu.run("cont", nil, nil)
	s := newENOSPCGuest(t, "--qmp", qemu.qmp)
	if e := s.fill(); e["nospace"] != true || e["action"] != "stop" || e["disk"] != "a" {
		t.Errorf("%+v", e)
	}
	paused := func() bool { return qemu.status() == "paused" }
	test.Eventually(t, "the guest is paused", paused)
	// The operator resumes too early.
	for range 2 {
		qemu.run("cont", nil, nil)
		command(t, s.dir, "resume", "a")
		test.Eventually(t, "the guest is paused again", paused)
	}
	test.Equal(t, s.waits(), 1, "requests wait")
	s.free()
	s.ended(frontend.StatusOK)
	test.Eventually(t, "the guest runs", func() bool { return qemu.status() == "running" })
	if e := nextEvent(t, s.events, "COW_NOSPACE_RESUMED"); len(e["disks"].([]any)) != 1 {
		t.Errorf("%+v", e)
	}
	s.check(s.f)
	expectFailure(t, s.dir, []string{"resume", "a"}, "none of its requests waits")
	s.f.Close()
	s.p.end(t)
	q := start(t, s.dir, nil, "serve", "a")
	s.check(dial(t, filepath.Join(s.dir, "run", "a.sock")))
	q.end(t)
}

func enospcNotRunning(t *testing.T) {
	qemu := startQEMU(t, shortDir(t))
	before := qemu.status()
	s := newENOSPCGuest(t, "--qmp", qemu.qmp)
	s.fill()
	s.free()
	s.ended(frontend.StatusOK)
	nextEvent(t, s.events, "COW_NOSPACE_RESUMED")
	if now := qemu.status(); now != before || now == "running" {
		t.Errorf("the guest was in state %s and is in state %s", before, now)
	}
	s.f.Close()
	s.p.end(t)
}

func enospcWaits(t *testing.T) {
	s := newENOSPCGuest(t, "--on-enospc", "stop", "--space-low", "off")
	if e := s.fill(); e["action"] != "wait" {
		t.Errorf("%+v", e)
	}
	s.checkBeside(1)
	if now := changeSettings(t, s.control,
		`{"on-enospc": "report"}`); now.OnENOSPC != daemon.ENOSPCReport {
		t.Errorf("%+v", now)
	}
	s.ended(frontend.StatusIOErr)
	s.check(s.f)
	s.f.Close()
	// There is no space for the map either: the process waits for space before it ends.
	test.Must(t, s.p.cmd.Process.Signal(unix.SIGTERM))
	test.Eventually(t, "the control socket is gone",
		func() bool { return s.control.Run(t.Context(), "query-version", nil, nil) != nil })
	s.free()
	s.p.waitExit(t)
	q := start(t, s.dir, nil, "serve", "a")
	s.check(dial(t, filepath.Join(s.dir, "run", "a.sock")))
	q.end(t)
}

// Waiting requests also wait in the next process, after a takeover or a kill. The policy is given
// by its former name.
func enospcTakenOver(t *testing.T) {
	s := newENOSPCGuest(t, "--on-enospc", "pause")
	socket := filepath.Join(s.dir, "run", "a.sock")
	s.fill()
	again := func(args ...string) {
		t.Helper()
		s.p = start(t, s.dir, nil, append(append([]string{"serve", "a"}, args...), "--on-enospc",
			"pause")...)
	}
	old := s.p
	again("--takeover")
	old.waitExit(t)
	test.Eventually(t, "reconnected", func() bool { return s.f.Reconnect(socket) == nil })
	test.Eventually(t, "it waits in the new process", func() bool { return s.waits() == 1 })
	s.p.cmd.Process.Kill()
	s.p.cmd.Wait()
	again()
	test.Eventually(t, "reconnected", func() bool { return s.f.Reconnect(socket) == nil })
	test.Eventually(t, "it waits in the third process", func() bool { return s.waits() == 1 })
	s.free()
	s.ended(frontend.StatusOK)
	s.check(s.f)
	s.f.Close()
	s.p.end(t)
}

// checkBeside reads all acknowledged writes, on another slot than that of the waiting write.
func (s *enospcGuest) checkBeside(slot int) {
	s.t.Helper()
	d := s.f.Driver(0)
	for i := range s.n {
		test.Must(s.t, d.Submit(slot, frontend.OpRead, int64(i)*enospcWrite, enospcWrite))
		test.Must(s.t, d.Kick())
		test.Must(s.t, d.Wait())
		done := d.Poll(nil)
		if len(done) != 1 || done[0].ID != slot || done[0].Status != frontend.StatusOK ||
			!bytes.Equal(d.Buffer(slot)[:enospcWrite], pattern(byte(i+1), enospcWrite)) {
			s.t.Fatalf("read %d: %+v", i, done)
		}
	}
}
