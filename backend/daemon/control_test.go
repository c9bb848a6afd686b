package daemon

import (
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"cowblk/backend"
	"cowblk/backend/backendtest"
	"cowblk/backend/control"
	"cowblk/backend/qmp"
	"cowblk/internal/test"
	"cowblk/vhost/frontend"
)

func TestCowSetIsStrict(t *testing.T) {
	all, err := ParseThreshold("100%")
	test.Must(t, err)
	d := start(t, newStore(t, nil, "a"),
		Options{Space: all, Device: backend.DeviceOptions{Poll: backend.DefaultPoll}}, "a")
	c := d.control()
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
		err := c.Run(t.Context(), "cow-set", json.RawMessage(args), nil)
		if !errors.As(err, &e) || !strings.Contains(e.Desc, word) {
			t.Errorf("%s: %v", args, err)
		}
	}
	set := func(args string) (s Settings) {
		t.Helper()
		test.Must(t, c.Run(t.Context(), "cow-set", json.RawMessage(args), &s))
		return s
	}
	if s := set(`{"disk": "a", "write-cache": false}`); s.Keep != 0 ||
		s.Disks[0] != (DiskSettings{Disk: "a", Cache: backend.Cache{WriteThrough: true},
			Poll: 50}) || s.SpaceLow != "100%" {
		t.Errorf("%+v", s)
	}
	for us, want := range map[string]float64{"12.5": 12.5, "0": 0, "1000": 1000} {
		if s := set(`{"poll-microseconds": ` + us + `}`); s.Disks[0].Poll != want ||
			s.Disks[0].WriteCache {
			t.Errorf("%s: %+v", us, s)
		}
	}
	d.dial("a", frontend.Options{})
	var disks []DiskInfo
	if err := c.Run(t.Context(), "query-cow-disks", nil, &disks); err != nil ||
		disks[0].WriteCache || disks[0].Cache != (backend.Cache{WriteThrough: true}) {
		t.Errorf("%+v, %v", disks, err)
	}
	test.Eventually(t, "space is low: no disk has more than 100% free",
		func() bool { return d.log.Values("free") != nil }, d.log)
}

// COW_SPACE_LOW names the disks, the path and the free space.
func TestSpaceLowEvent(t *testing.T) {
	st := newStore(t, nil, "a", "b")
	d := start(t, st, Options{}, "a", "b")
	c := d.control()
	events, err := c.Events(t.Context())
	test.Must(t, err)
	test.Must(t, c.Run(t.Context(), "cow-set", json.RawMessage(`{"space-low": "100%"}`), nil))
	got := (<-events).Data
	free, _ := got["free"].(float64)
	limit, _ := got["threshold"].(float64)
	if fmt.Sprint(got["disks"]) != "[a b]" || !strings.HasPrefix(fmt.Sprint(got["path"]),
		st.Dir()) || free <= 0 || limit <= free {
		t.Errorf("%v", got)
	}
}

// A monitor that accepts and does not answer, or that does not exist, delays nothing.
func TestHooksDoNotDisturb(t *testing.T) {
	st := newStore(t, nil, "a")
	at := filepath.Join(t.TempDir(), "qmp")
	mute, err := control.ListenUnix(at, "") // the backlog accepts connections
	test.Must(t, err)
	for _, gone := range []bool{false, true} {
		if gone {
			test.Must(t, mute.Close())
		}
		d := start(t, st, Options{Hooks: HookOptions{QMP: &qmp.Address{Path: at},
			Events: []string{"RESET"}}}, "a")
		f := d.dial("a", frontend.Options{})
		test.Must(t, backendtest.Write(f.Driver(0), 1, 0)())
		_, err := d.promote(t.Context(), PromoteArgs{Disks: []string{"a"}, Tag: fmt.Sprint("gone-",
			gone)}, "")
		test.Must(t, err)
		wantAt(t, f, 1, 0)
		d.end()
	}
}
