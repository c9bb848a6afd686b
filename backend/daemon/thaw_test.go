package daemon

import (
	"log/slog"
	"net"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"cowblk/backend/backendtest"
	"cowblk/backend/qmp"
	"cowblk/internal/test"
)

// A guest that an earlier process left frozen is thawed before it is frozen again, never during a
// promotion.
func TestPromoteWaitsForThaw(t *testing.T) {
	st, dir := newStore(t, nil, "a"), t.TempDir()
	spec := qmp.Spec{Mode: qmp.QuiesceGuest, Agent: "unix:" + filepath.Join(dir, "agent")}
	test.Must(t, st.SetQuiesceRecord("a", spec))
	d := start(t, st, Options{}, "a") // the agent does not exist yet
	promote := func(tag string, spec qmp.Spec, timeout float64) error {
		_, err := d.promote(t.Context(), PromoteArgs{Disks: []string{"a"}, Tag: tag, Spec: spec,
			Timeout: timeout}, "")
		return err
	}
	if err := promote("t1", spec, 0.2); err == nil || !strings.Contains(err.Error(), spec.Agent) {
		t.Errorf("promoted before the guest was thawed: %v", err)
	}
	test.Must(t, promote("t2", qmp.Spec{}, 0))
	g := backendtest.NewGuest(t, dir)
	var commands []string
	g.SetHook(func(when, command string) { commands = append(commands, when+" "+command) })
	test.Must(t, promote("t3", spec, 20))
	d.end()
	if n := len(commands); n < 4 || commands[n-4] != "before guest-fsfreeze-freeze" ||
		commands[n-1] != "after guest-fsfreeze-thaw" {
		t.Errorf("the guest saw %v", commands)
	}
	if hasRecord(t, st) {
		t.Error("a record is left")
	}
}

// listenRefusing makes a socket file on which no process listens.
func listenRefusing(t *testing.T, path string) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	test.Must(t, err)
	l.SetUnlinkOnClose(false)
	test.Must(t, l.Close())
}

// The record of a guest that has ended is removed automatically, and promotions are quiesced again
// at once.
func TestRecordOfEndedGuestRemoved(t *testing.T) {
	dead := exec.Command("true")
	test.Must(t, dead.Run())
	instance := "pid " + strconv.Itoa(dead.Process.Pid)
	dir := t.TempDir()
	none, refuses := "unix:"+filepath.Join(dir, "none"), "unix:"+filepath.Join(dir, "refuses")
	listenRefusing(t, filepath.Join(dir, "refuses"))
	for name, spec := range map[string]qmp.Spec{
		"process ended":          {Mode: qmp.QuiesceGuest, Agent: none, Instance: instance},
		"process ended, pause":   {Mode: qmp.QuiescePause, QMP: none, Instance: instance},
		"an older version's":     {Mode: qmp.QuiesceGuest, Agent: refuses},
		"an older one's, paused": {Mode: qmp.QuiescePause, QMP: refuses},
	} {
		t.Run(name, func(t *testing.T) {
			st := newStore(t, nil, "a")
			test.Must(t, st.SetQuiesceRecord("a", spec))
			d := start(t, st, Options{}, "a")
			g := backendtest.NewGuest(t, t.TempDir())
			_, err := d.promote(t.Context(), PromoteArgs{Disks: []string{"a"}, Tag: "t",
				Spec: g.Spec(qmp.QuiesceGuest), Timeout: 30}, "")
			test.Must(t, err)
			d.end()
			if hasRecord(t, st) {
				t.Error("a record is left")
			}
			ended := func(r test.Record) bool { return r.Message == guestEnded }
			if d.log.Count(slog.LevelError) != 0 || !slices.ContainsFunc(d.log.Records(), ended) {
				t.Errorf("log:\n%s", d.log)
			}
		})
	}
}

// Ending a process before it could thaw a guest is not an error: the next process tries again.
func TestEndBeforeThaw(t *testing.T) {
	st := newStore(t, nil, "a")
	test.Must(t, st.SetQuiesceRecord("a", qmp.Spec{Mode: qmp.QuiesceGuest,
		Agent: "unix:" + filepath.Join(t.TempDir(), "none")}))
	d := start(t, st, Options{}, "a")
	d.end()
	left := func(r test.Record) bool {
		return r.Level == slog.LevelWarn && r.Attrs["occasion"] != ""
	}
	if d.log.Count(slog.LevelError) != 0 || !slices.ContainsFunc(d.log.Records(), left) {
		t.Errorf("log:\n%s", d.log)
	}
	if !hasRecord(t, st) {
		t.Error("the record is gone")
	}
}
