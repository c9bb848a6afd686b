package daemon

import (
	"slices"
	"testing"

	"cowblk/internal/test"
)

// cow-set takes the option, for the next driver, and refuses it beside a write cache that is off.
func TestSetWritebackWithoutFlush(t *testing.T) {
	d := quietDaemon(t, &test.Log{}, HookOptions{})
	on, off := true, false
	s, err := d.set(SetArgs{Disk: "test", NoFlush: &on})
	if err != nil || !s.Disks[0].NoFlush || !s.Disks[0].WriteCache {
		t.Errorf("%+v, %v", s, err)
	}
	if s, err := d.set(SetArgs{WriteCache: &off}); err == nil {
		t.Errorf("accepted: %+v", s)
	}
	dev := d.snapshot()[0].dev
	dev.Reset()
	test.Must(t, dev.SetFeatures(0))
	if !dev.WriteCacheOn() {
		t.Error("the write cache is off for a driver without FLUSH")
	}
	if s, err = d.set(SetArgs{WriteCache: &off, NoFlush: &off}); err != nil || s.Disks[0].NoFlush ||
		s.Disks[0].WriteCache {
		t.Errorf("%+v, %v", s, err)
	}
}

// cow-set and the command line accept the former names of the policies and warn.
func TestENOSPCPolicyNames(t *testing.T) {
	for given, want := range map[string]ENOSPCPolicy{
		"stop": ENOSPCStop, "report": ENOSPCReport, "pause": ENOSPCStop, "error": ENOSPCReport,
	} {
		var log test.Log
		d := quietDaemon(t, &log, HookOptions{})
		s, err := d.set(SetArgs{OnENOSPC: &given})
		if err != nil || s.OnENOSPC != want {
			t.Errorf("%s: %+v, %v", given, s, err)
		}
		newSpaceMonitor(d, Threshold{}, ENOSPCOptions{Policy: want, Given: given})
		var warnings []string
		if given != string(want) {
			warnings = []string{given, given}
		}
		found, use := log.Values("found"), log.Values("use")
		if !slices.Equal(found, warnings) || slices.ContainsFunc(use,
			func(v string) bool { return v != string(want) }) || len(use) != len(found) {
			t.Errorf("%s: warnings of %v, want %v\n%s", given, found, warnings, &log)
		}
	}
	for _, bad := range []string{"", "Stop", "ignore", "stop "} {
		if p, err := ParseENOSPCPolicy(bad); err == nil {
			t.Errorf("%q was accepted as %s", bad, p)
		}
	}
}
