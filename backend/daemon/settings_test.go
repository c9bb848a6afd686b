package daemon

import (
	"testing"

	"cowblk/internal/test"
)

// cow-set takes the option, for the next driver, and refuses it beside a write cache that is off.
func TestSetWritebackWithoutFlush(t *testing.T) {
	d, _ := quietDaemon(t, &test.Log{}, HookOptions{})
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
	if s, err = d.set(SetArgs{WriteCache: &off, NoFlush: &off}); err != nil || s.Disks[0].NoFlush || s.Disks[0].WriteCache {
		t.Errorf("%+v, %v", s, err)
	}
}
