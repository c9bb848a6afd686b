package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"cowblk/backend"
	"cowblk/backend/control"
	"cowblk/backend/daemon"
	"cowblk/internal/test"
)

// The events of a QEMU that starts after the daemon, ends and starts again.
func TestHooksOnQEMUsEvents(t *testing.T) {
	dir := storeWith(t, "16M", "a", "b")
	p := start(t, dir, nil, "serve", "a", "b", "--qmp", "unix:"+filepath.Join(dir, "qmp"), "--promote-min-interval", "1us",
		"--promote-on", "reset,SHUTDOWN", "--keep", "3")
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the process said\n%s", p.log.String())
		}
	})
	c, events := dialControl(t, dir, "a")
	if s := changeSettings(t, c, `{}`); fmt.Sprint(s.PromoteOn) != "[RESET SHUTDOWN]" || s.Keep != 3 || s.SpaceLow != "5%" {
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
		if got["trigger"] != event || len(disks) != 2 || !strings.HasPrefix(tag, strings.ToLower(event)+"-2") {
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
	if s := changeSettings(t, c, `{"promote-on": ["STOP", "RESUME"]}`); fmt.Sprint(s.PromoteOn) != "[STOP RESUME]" {
		t.Errorf("settings %+v", s)
	}
	q.run("cont", nil, nil)
	promoted("RESUME")
	// Now there are three tags. A pause by cowblk itself makes none.
	pause("paused")
	q.run("stop", nil, nil)
	refused := nextEvent(t, events, "COW_PROMOTE_REFUSED")
	if reason := fmt.Sprint(refused["reason"]); refused["trigger"] != "STOP" || !strings.Contains(reason, "3 tags made by hooks") || !strings.Contains(reason, "--keep") {
		t.Errorf("refused %v", refused)
	}
	changeSettings(t, c, `{"keep": 4, "promote-on": ["SHUTDOWN"]}`)
	q.quit()
	promoted("SHUTDOWN")
	p.end(t)

	// A new process counts the tags that hooks have made.
	p = start(t, dir, nil, "serve", "a", "b", "--qmp", q.qmp, "--promote-on", "RESET", "--keep", "4")
	_, events = dialControl(t, dir, "a")
	q = startQEMU(t, dir, []string{"-machine", "q35"})
	pause("connected")
	q.run("system_reset", nil, nil)
	nextEvent(t, events, "COW_PROMOTE_REFUSED")
	p.end(t)
}

// A monitor that accepts and does not answer, or that does not exist, delays nothing.
func TestHooksDoNotDisturb(t *testing.T) {
	dir := storeWith(t, "16M", "a")
	mute, err := control.ListenUnix(filepath.Join(dir, "qmp"), "") // the backlog accepts connections
	test.Must(t, err)
	for _, gone := range []bool{false, true} {
		if gone {
			mute.Close()
		}
		p := start(t, dir, nil, "serve", "a", "--qmp", "unix:"+filepath.Join(dir, "qmp"), "--promote-on", "RESET")
		f := dial(t, filepath.Join(dir, "run", "a.sock"))
		writeAt(t, f, 0, pattern(1, 4096))
		command(t, dir, "promote", "a")
		wantAt(t, f, 0, pattern(1, 4096))
		f.Close()
		p.end(t)
		time.Sleep(time.Second) // a tag's name has seconds
	}
}

func TestCowSetIsStrict(t *testing.T) {
	dir := storeWith(t, "16M", "a")
	p := start(t, dir, nil, "serve", "a", "--space-low", "100%")
	c, _ := dialControl(t, dir, "a")
	for args, word := range map[string]string{
		`{"nonsense": 1}`:                                         "nonsense",
		`{"keep": "many"}`:                                        "keep",
		`{"promote-on": ["RESET"]}`:                               "--qmp",
		`{"disk": "b", "write-cache": false}`:                     "not served",
		`{"space-low": "a lot"}`:                                  "a lot",
		`{"disk": "a", "keep": 1}`:                                "poll-microseconds",
		`{"write-cache": false, "writeback-without-flush": true}`: "writeback-without-flush",
		`{"poll-microseconds": -1}`:                               "poll-microseconds",
		`{"poll-microseconds": 1e300}`:                            "poll-microseconds",
		`{"poll-microseconds": 1000.1}`:                           "0, which is off, to 1000",
		`{"promote-min-interval": -1, "keep":1}`:                  "promote-min-interval",
	} {
		var e *control.Error
		err := c.Run(context.Background(), "cow-set", json.RawMessage(args), nil)
		if !errors.As(err, &e) || !strings.Contains(e.Desc, word) {
			t.Errorf("%s: %v", args, err)
		}
	}
	if s := changeSettings(t, c, `{"disk": "a", "write-cache": false}`); s.Keep != 0 || s.Disks[0] != (daemon.DiskSettings{Disk: "a", Cache: backend.Cache{WriteThrough: true}, Poll: 50}) || s.SpaceLow != "100%" {
		t.Errorf("%+v", s)
	}
	for us, want := range map[string]float64{"12.5": 12.5, "0": 0, "1000": 1000} {
		if s := changeSettings(t, c, `{"poll-microseconds": `+us+`}`); s.Disks[0].Poll != want || s.Disks[0].WriteCache {
			t.Errorf("%s: %+v", us, s)
		}
	}
	f := dial(t, filepath.Join(dir, "run", "a.sock"))
	var disks []daemon.DiskInfo
	if err := c.Run(context.Background(), "query-cow-disks", nil, &disks); err != nil || disks[0].WriteCache || disks[0].Cache != (backend.Cache{WriteThrough: true}) {
		t.Errorf("%+v, %v", disks, err)
	}
	f.Close()
	p.end(t)
	if !strings.Contains(p.log.String(), "space is low") {
		t.Errorf("no disk has more than 100%% free:\n%s", p.log.String())
	}
}

// COW_SPACE_LOW names the disks, the path and the free space.
func TestSpaceLowEvent(t *testing.T) {
	dir := storeWith(t, "16M", "a", "b")
	p := start(t, dir, nil, "serve", "a", "b", "--space-low", "off")
	c, events := dialControl(t, dir, "a")
	changeSettings(t, c, `{"space-low": "100%"}`)
	got := nextEvent(t, events, "COW_SPACE_LOW")
	free, _ := got["free"].(float64)
	limit, _ := got["threshold"].(float64)
	if fmt.Sprint(got["disks"]) != "[a b]" || !strings.HasPrefix(fmt.Sprint(got["path"]), dir) || free <= 0 || limit <= free {
		t.Errorf("%v", got)
	}
	p.end(t)
}
