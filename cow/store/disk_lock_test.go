package store

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"cowblk/cow/cowtest/faultfs"
	"cowblk/internal/test"
)

// A process that is to serve a disk waits for a check or a promotion that has it open. It does not
// wait for another process that serves the disk, and its wait has a limit.
func TestServeWaitsForTheLock(t *testing.T) {
	for name, c := range map[string]struct {
		holder Serving
		held   time.Duration
		waits  time.Duration // minimum, for those that get the disk
		err    error
	}{
		"a check":      {Serving{PID: 7}, 10 * time.Second, 10 * time.Second, nil},
		"a long check": {Serving{PID: 7}, 2 * time.Minute, 0, ErrInUse},
		"another serves": {Serving{PID: 7, Socket: "/run/x.sock"}, 10 * time.Second, 0,
			ErrInUse},
		"nobody":            {},
		"one that is quick": {Serving{PID: 7}, 100 * time.Millisecond, 100 * time.Millisecond, nil},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := faultfs.New()
				s, err := Open("/store", Options{FS: m.Process(nil), Getenv: noEnv})
				test.Must(t, err)
				test.Must(t, test.Err(s.Create(ctx, "vm1", CreateOptions{Size: 1 << 20})))
				if c.held > 0 {
					lock, err := s.LockDisk("vm1")
					test.Must(t, err)
					test.Must(t, lock.SetServing(c.holder))
					time.AfterFunc(c.held, func() { lock.Unlock() })
				}
				start := time.Now()
				o, err := s.OpenDisk(ctx, "vm1", OpenOptions{Serve: true})
				if !errors.Is(err, c.err) || time.Since(start) < c.waits {
					t.Errorf("after %v: %v, expected %v", time.Since(start), err, c.err)
				}
				if err == nil {
					o.Close()
				}
				time.Sleep(time.Hour) // the holder ends
			})
		})
	}
}
