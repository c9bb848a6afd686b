package main

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
)

// The events of a QEMU that starts after the daemon, ends and starts again.
func TestHooksOnQEMUsEvents(t *testing.T) {
	dir := storeWith(t, "16M", "a", "b")
	p := start(t, dir, nil, "serve", "a", "b", "--qmp", "unix:"+filepath.Join(dir, "qmp"),
		"--promote-min-interval", "1us",
		"--promote-on", "reset,SHUTDOWN", "--keep", "3")
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the process said\n%s", p.log.String())
		}
	})
	c, events := dialControl(t, dir, "a")
	if s := changeSettings(t, c, `{}`); fmt.Sprint(s.PromoteOn) != "[RESET SHUTDOWN]" ||
		s.Keep != 3 || s.SpaceLow != "5%" {
		t.Errorf("settings %+v", s)
	}

	q := startQEMU(t, dir, []string{"-machine", "q35"})
	pause := func(tag string) {
		t.Helper()
		// Waits for the connection, and shows that promotions share it: QEMU has one connection.
		command(t, dir, "promote", "a", "b", "--tag", tag, "--quiesce", "pause", "--qmp", q.qmp)
		if got := nextEvent(t, events, "COW_PROMOTED"); got["tag"] != tag || got["trigger"] != nil {
			t.Errorf("promoted %v", got)
		}
	}
	promoted := func(event string) {
		t.Helper()
		got := nextEvent(t, events, "COW_PROMOTED")
		tag, _ := got["tag"].(string)
		disks, _ := got["disks"].([]any)
		if got["trigger"] != event || len(disks) != 2 || !strings.HasPrefix(tag,
			strings.ToLower(event)+"-2") {
			t.Errorf("%s: promoted %v", event, got)
		}
		for _, disk := range []string{"a", "b"} {
			if info := command(t, dir, "info", disk); !strings.Contains(info, tag) {
				t.Errorf("%s does not have %s:\n%s", disk, tag, info)
			}
		}
	}
	pause("by-hand")
	q.run("system_reset", nil, nil)
	promoted("RESET")
	q.run("stop", nil, nil) // not requested by cowblk
	q.quit()
	promoted("SHUTDOWN")

	q = startQEMU(t, dir, []string{"-machine", "q35"})
	pause("by-hand-again")
	if s := changeSettings(t, c, `{"promote-on": ["STOP", "RESUME"]}`); fmt.Sprint(
		s.PromoteOn) != "[STOP RESUME]" {
		t.Errorf("settings %+v", s)
	}
	q.run("cont", nil, nil)
	promoted("RESUME")
	// Now there are three tags. A pause by cowblk itself makes none.
	pause("paused")
	q.run("stop", nil, nil)
	refused := nextEvent(t, events, "COW_PROMOTE_REFUSED")
	if reason := fmt.Sprint(refused["reason"]); refused["trigger"] != "STOP" ||
		!strings.Contains(reason, "3 tags made by hooks") || !strings.Contains(reason, "--keep") {
		t.Errorf("refused %v", refused)
	}
	changeSettings(t, c, `{"keep": 4, "promote-on": ["SHUTDOWN"]}`)
	q.quit()
	promoted("SHUTDOWN")
	p.end(t)

	// A new process counts the tags that hooks have made.
	p = start(t, dir, nil, "serve", "a", "b", "--qmp", q.qmp, "--promote-on", "RESET", "--keep",
		"4")
	_, events = dialControl(t, dir, "a")
	q = startQEMU(t, dir, []string{"-machine", "q35"})
	pause("connected")
	q.run("system_reset", nil, nil)
	nextEvent(t, events, "COW_PROMOTE_REFUSED")
	p.end(t)
}
