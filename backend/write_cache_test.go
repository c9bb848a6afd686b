package backend

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"

	"cowblk/backend/backendtest"
	"cowblk/cow"
	"cowblk/cow/cowtest/faultfs"
	"cowblk/internal/test"
	"cowblk/vhost/blk"
	"cowblk/vhost/frontend"
)

// Whether a write is durable, data and bit, when it completes: for each set of features, each
// setting, and each thing that the driver can write to writeback, before its queues start and while
// they run.
func TestWriteIsStableWhenItCompletes(t *testing.T) {
	// S stable, v volatile: with writeback not written, written 0, written 1.
	for _, c := range []struct {
		modes  []string
		option bool
		want   map[string]string // by features
	}{
		{[]string{"writeback", "none"}, false, map[string]string{"": "SSS", "W": "SSv", "F": "vSv",
			"FW": "vSv"}},
		{[]string{"writeback", "none"}, true, map[string]string{"": "vSv", "W": "vSv", "F": "vSv",
			"FW": "vSv"}},
		{[]string{"writethrough", "directsync"}, false, map[string]string{"": "SSS", "W": "SSv",
			"F": "SSS", "FW": "SSv"}},
	} {
		for _, mode := range c.modes {
			for features, want := range c.want {
				for write, stable := range want {
					for _, running := range []bool{false, true} {
						name := fmt.Sprintf("%s option %v features %s written %d running %v", mode,
							c.option, features, write-1, running)
						o := DeviceOptions{WritebackWithoutFlush: c.option}
						test.Must(t, o.Cache.UnmarshalText([]byte(mode)))
						t.Run(name, func(t *testing.T) {
							s := serveInMemory(t, o)
							f := dialWith(t, s.socket, features, !running)
							if write > 0 {
								test.Must(t, f.SetConfig(blk.WritebackOffset,
									[]byte{byte(write - 1)}))
							}
							if !running {
								test.Must(t, f.Start())
							}
							if got := s.stable(f.Driver(0)); got != (stable == 'S') {
								t.Errorf("writes are stable when they complete: %v, expected %v",
									got, !got)
							}
						})
					}
				}
			}
		}
	}
	for _, mode := range []string{"writethrough", "directsync"} {
		o := DeviceOptions{WritebackWithoutFlush: true}
		test.Must(t, o.Cache.UnmarshalText([]byte(mode)))
		if _, err := NewDevice(serveInMemory(t, DeviceOptions{}).disk, o); err == nil {
			t.Errorf("%s was accepted with writeback-without-flush", mode)
		}
	}
}

// dialWith connects a front-end whose driver accepts FLUSH and CONFIG_WCE only if features has an
// F, a W.
func dialWith(t *testing.T, socket, features string, noStart bool) *frontend.Frontend {
	t.Helper()
	o := frontend.Options{NoStart: noStart}
	if !strings.Contains(features, "F") {
		o.Refuse |= frontend.FeatureFlush
	}
	if !strings.Contains(features, "W") {
		o.Refuse |= frontend.FeatureConfigWCE
	}
	f, err := frontend.Dial(socket, o)
	test.Must(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

// A stop, a reset and a new connection change nothing for the same driver: what it negotiated is
// looked at anew.
func TestWriteCacheAfterStopAndReset(t *testing.T) {
	for features, want := range map[string]bool{"": true, "W": true, "F": false, "FW": false} {
		t.Run(features, func(t *testing.T) {
			s := serveInMemory(t, DeviceOptions{})
			f := dialWith(t, s.socket, features, false)
			for _, again := range []func() error{
				func() error { return nil },
				func() error { test.Must(t, f.Stop()); return f.Cont() },
				f.Reset, f.Reset,
				func() error { test.Must(t, f.Disconnect()); return f.Reconnect(s.socket) },
			} {
				test.Must(t, again())
				test.Equal(t, s.stable(f.Driver(0)), want, "stable")
			}
		})
	}
}

// A driver that was shown a write cache that is off goes on believing so when another process
// serves it: one that was killed has told nothing, one with other options knows nothing. A
// front-end that starts anew is not concerned.
func TestWriteCacheAfterAnotherProcess(t *testing.T) {
	for _, c := range []struct {
		name   string
		before DeviceOptions
		write  []byte // to writeback
		want   bool   // stable
	}{
		{"on all the time", DeviceOptions{}, nil, false},
		{"switched off by the driver", DeviceOptions{}, []byte{0}, true},
		{"switched off and on", DeviceOptions{}, []byte{0, 1}, false},
		{"started off", DeviceOptions{Cache: Cache{WriteThrough: true}}, nil, true},
		{"started off, switched on", DeviceOptions{Cache: Cache{WriteThrough: true}}, []byte{1},
			false},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := serveInMemory(t, c.before)
			f := dialWith(t, s.socket, "FW", false)
			for _, v := range c.write {
				test.Must(t, f.SetConfig(blk.WritebackOffset, []byte{v}))
			}
			for range 2 {
				s.export(DeviceOptions{})
				test.Must(t, f.Reconnect(s.socket))
				test.Equal(t, s.stable(f.Driver(0)), c.want, "stable")
				test.Must(t, f.Reset()) // QEMU shows the next driver the same
				test.Equal(t, s.stable(f.Driver(0)), c.want, "after a reset: stable")
			}
			test.Must(t, f.Close())
			if s.stable(dialWith(t, s.socket, "FW", false).Driver(0)) {
				t.Error("a front-end that starts anew finds no write cache")
			}
		})
	}
}

// Drivers that follow each other on one front-end, with the messages that QEMU sends.
func TestWriteCacheFollowsTheDrivers(t *testing.T) {
	const flush, wce = blk.FeatureFlush, blk.FeatureConfigWCE
	for _, c := range []struct{ name, steps string }{
		// F, W: features; -: none; 0, 1: SET_CONFIG; r, s: GET_CONFIG that finds it so; R: reset;
		// q: queues run, Q: not o, O: the operator's write-cache off, on. After each comes the
		// state: '!' stable, '.' volatile.
		{"nothing negotiated", "R!"},
		{"firmware, then a system", "R! s! -! FW. -! FW."},
		{"off, then a reset that is not told", "R! s! FW. q. 0! Q! -! FW! F. FW!"},
		{"off, then a reset with a message: QEMU shows 0", "R! s! FW. 0! R! -! FW! 1. R! FW."},
		{"off, then the front-end reads the field again", "R! FW. 0! R! FW! s. R! FW."},
		{"off, then a new connection of the same", "R! s! FW. 0! r! R! R! FW!"},
		{"CONFIG_WCE alone", "R! s! W! r! q! 1. Q. W. s. R! W! r!"},
		{"on, then another driver with CONFIG_WCE alone", "R! FW. q. 0! 1. Q. W!"},
		{"written before the features are set", "R! s! 1! W. W. q."},
		{"the operator's change is for the next driver",
			"R! FW. o. s. -! FW. R! FW! r! O! FW! R! FW! s. FW."},
	} {
		d := serveInMemory(t, DeviceOptions{}).dev
		done := ""
		running := false
		set := func(off bool) { d.cache.set(WriteCacheSetting{Off: off}) }
		for _, step := range strings.Fields(c.steps) {
			done += " " + step
			what, state := step[:len(step)-1], step[len(step)-1:]
			switch what {
			case "R":
				d.Reset()
			case "0", "1":
				d.cache.write(what == "1", running)
			case "r", "s":
				p := make([]byte, blk.SpaceSize)
				test.Must(t, d.Config(p))
				if on := p[blk.WritebackOffset] == 1; on != (what == "s") {
					t.Errorf("%s:%s: writeback reads as %v", c.name, done, on)
				}
			case "q", "Q":
				running = what == "q"
			case "o", "O":
				set(what == "o")
			default:
				var f uint64
				if strings.Contains(what, "F") {
					f |= flush
				}
				if strings.Contains(what, "W") {
					f |= wce
				}
				test.Must(t, d.SetFeatures(f))
			}
			if off := d.cache.off.Load(); off != (state == "!") {
				t.Errorf("%s:%s: the write cache is off: %v", c.name, done, off)
			}
		}
	}
}

// A write that is to be stable fails if its round does: for want of space in the map, and for good
// when a sync fails.
func TestStableWriteFailsWithItsRound(t *testing.T) {
	for _, op := range []string{"write", "sync"} {
		s := serveInMemory(t, DeviceOptions{})
		f := dialWith(t, s.socket, "", false)
		hook := faultfs.Hook(func(c faultfs.Call) (x faultfs.Fault) {
			if c.Op == op && c.Name == "/map" {
				x.Err = syscall.ENOSPC
			}
			return x
		})
		s.hook.Store(&hook)
		if err := backendtest.Write(f.Driver(0), 'w', 0)(); err == nil {
			t.Errorf("a %s of the map failed, and the write did not", op)
		}
	}
}

// A failed background flush emits an event. A request that waited for the same flush emits no
// second one.
func TestFailedFlushIsOneEvent(t *testing.T) {
	for _, asked := range []bool{false, true} {
		s := serveInMemory(t, DeviceOptions{})
		events := make(chan IOErrorEvent, 8)
		s.dev.Observe(Observer{IOError: func(e IOErrorEvent) { events <- e }})
		hook := faultfs.Hook(func(c faultfs.Call) (x faultfs.Fault) {
			if c.Op == "sync" {
				x.Err = syscall.EIO
			}
			return x
		})
		s.hook.Store(&hook)
		if asked {
			f := dialWith(t, s.socket, "FW", false)
			if err := f.Driver(0).Flush(); err == nil {
				t.Error("the flush did not fail")
			}
			test.Must(t, f.Close())
			// as a background round does
		} else if err := s.disk.Flush(); !errors.Is(err, cow.ErrFailed) {
			t.Errorf("flush: %v", err)
		}
		if len(events) != 1 {
			t.Errorf("asked %v: %d events", asked, len(events))
			continue
		}
		if e := <-events; e.Operation != "flush" || e.Action != ActionReport || e.Disk != "test" {
			t.Errorf("%+v", e)
		}
	}
}
