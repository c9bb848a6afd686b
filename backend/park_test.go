package backend

import (
	"bytes"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"cowblk/cow"
	"cowblk/cow/cowtest/faultfs"
	"cowblk/cow/vfs"
	"cowblk/internal/test"
	"cowblk/vhost"
	"cowblk/vhost/frontend"
)

// full is a served disk whose file system can be full.
type full struct {
	*served
	err   atomic.Pointer[error] // of every write to data; nil: there is space
	calls atomic.Int32          // of onPark
}

func serveFull(t *testing.T) *full {
	x := faultfs.Over(vfs.OS{}, nil)
	s := &full{served: serveOn(t, DeviceOptions{}, x)}
	x.OnCall(func(c faultfs.Call) error {
		if err := s.err.Load(); err != nil && (c.Op == "write" || c.Op == "punch") &&
			strings.Contains(filepath.Base(c.Name), "data") {
			return *err
		}
		return nil
	})
	s.dev.Observe(Observer{Parked: func(*cow.Request) { s.calls.Add(1) }})
	return s
}

func (s *full) fill(err error) { s.err.Store(&err) }
func (s *full) free()          { s.err.Store(nil) }

// fillUp submits a write of 4 KiB of its own number on each of n slots, and waits until all are
// parked.
func (s *full) fillUp(d *frontend.Driver, n int) {
	s.t.Helper()
	for i := range n {
		for j := range 4096 {
			d.Buffer(i)[j] = byte(i + 1)
		}
		test.Must(s.t, d.Submit(i, frontend.OpWrite, int64(i)*8192, 4096))
	}
	test.Must(s.t, d.Kick())
	s.parks(n)
}

// parks waits until n requests are parked.
func (s *full) parks(n int) {
	s.t.Helper()
	test.Eventually(s.t, fmt.Sprint(n, " requests are parked"),
		func() bool { return s.dev.Parked() == n })
}

// collect waits for n completions of one status, each of another slot.
func collect(t *testing.T, d *frontend.Driver, n int, status byte) {
	t.Helper()
	seen := map[int]bool{}
	for len(seen) < n {
		test.Must(t, d.Wait())
		for _, c := range d.Poll(nil) {
			if c.Status != status || seen[c.ID] {
				t.Fatalf("slot %d: status %d, seen before: %v; expected status %d, once", c.ID,
					c.Status, seen[c.ID], status)
			}
			seen[c.ID] = true
		}
	}
	test.Equal(t, d.InFlight(), 0, "requests are left")
}

// written checks what fillUp wrote.
func written(t *testing.T, d *frontend.Driver, n int) {
	t.Helper()
	p := make([]byte, 4096)
	for i := range n {
		_, err := d.ReadAt(p, int64(i)*8192)
		test.Must(t, err)
		if !bytes.Equal(p, bytes.Repeat([]byte{byte(i + 1)}, 4096)) {
			t.Fatalf("write %d is not on the disk", i)
		}
	}
}

// Requests that find no space wait, reads go on, and after resume they succeed; or wait again.
func TestParkedUntilThereIsSpace(t *testing.T) {
	for _, err := range []error{unix.ENOSPC, unix.EDQUOT} {
		s := serveFull(t)
		s.dev.SetParking(true)
		f := s.dial(frontend.Options{Queues: 2})
		d := f.Driver(0)
		s.fill(err)
		s.fillUp(d, 20)
		if n := s.calls.Load(); n != 20 {
			t.Errorf("the observer saw %d requests, expected 20", n)
		}
		if d.InFlight() != 20 || len(d.Poll(nil)) != 0 {
			t.Error("a parked request was given back")
		}
		for _, q := range []int{0, 1} {
			_, err := f.Driver(q).ReadAt(make([]byte, 4096), 1<<20)
			test.Must(t, err)
		}
		if n := s.dev.ResumeParked(); n != 20 {
			t.Errorf("resumed %d, expected 20", n)
		}
		s.parks(20)
		s.free()
		s.dev.ResumeParked()
		collect(t, d, 20, frontend.StatusOK)
		written(t, d, 20)
		test.Equal(t, s.dev.Parked()+s.dev.ResumeParked(), 0, "requests are parked still")
		test.Must(t, f.Close())
	}
}

// Without the policy, and for other errors, nothing is parked; nor when it is taken back.
func TestNotParked(t *testing.T) {
	s := serveFull(t)
	f := s.dial(frontend.Options{})
	defer f.Close()
	d := f.Driver(0)
	write := func(want bool) {
		t.Helper()
		var status *frontend.StatusError
		if _, err := d.WriteAt(make([]byte, 4096), 0); errors.As(err, &status) == want {
			t.Errorf("write: %v", err)
		}
	}
	s.fill(unix.ENOSPC)
	write(false)
	s.dev.SetParking(true)
	s.fill(unix.EIO)
	write(false)
	s.fill(unix.ENOSPC)
	s.fillUp(d, 3)
	s.dev.SetParking(false)
	s.dev.ResumeParked()
	collect(t, d, 3, frontend.StatusIOErr)
	s.free()
	write(true)
	for err, want := range map[error]bool{
		fmt.Errorf("writing: %w", unix.ENOSPC):                  true,
		fmt.Errorf("%w: %w", cow.ErrFailed, error(unix.ENOSPC)): false, // no later success
		unix.EIO: false,
	} {
		if cow.NoSpace(err) != want {
			t.Errorf("%v: %v", err, !want)
		}
	}
}

// A ring that stops leaves what is parked in its region: the machine's stop and cont, and another
// front-end's connection for the same guest, find it there. Without a region it fails.
func TestParkedOverStop(t *testing.T) {
	const n = 12
	t.Run("stop and cont", func(t *testing.T) {
		s := serveFull(t)
		s.dev.SetParking(true)
		f := s.dial(frontend.Options{})
		defer f.Close()
		s.fill(unix.ENOSPC)
		s.fillUp(f.Driver(0), n)
		for range 3 {
			test.Must(t, f.Stop())
			test.Equal(t, s.dev.Parked(), 0, "requests are parked by a worker that is gone")
			test.Must(t, f.Cont())
			s.parks(n)
		}
		test.Must(t, f.Stop())
		s.free()
		test.Must(t, f.Cont())
		collect(t, f.Driver(0), n, frontend.StatusOK)
		written(t, f.Driver(0), n)
	})
	t.Run("disconnected", func(t *testing.T) {
		s := serveFull(t)
		s.dev.SetParking(true)
		f := s.dial(frontend.Options{})
		defer f.Close()
		s.fill(unix.ENOSPC)
		s.fillUp(f.Driver(0), n)
		test.Must(t, f.Disconnect())
		s.parks(0)
		s.free()
		test.Must(t, f.Reconnect(s.socket))
		collect(t, f.Driver(0), n, frontend.StatusOK)
		written(t, f.Driver(0), n)
	})
	t.Run("not tracked", func(t *testing.T) {
		s := serveFull(t)
		s.dev.SetParking(true)
		f := s.dial(frontend.Options{
			Protocol: vhost.ProtocolFeatures &^ vhost.ProtocolInflightShmfd})
		defer f.Close()
		s.fill(unix.ENOSPC)
		s.fillUp(f.Driver(0), n)
		test.Must(t, f.Stop())
		collect(t, f.Driver(0), n, frontend.StatusIOErr)
		s.free()
		test.Must(t, f.Cont())
		_, err := f.Driver(0).WriteAt(make([]byte, 4096), 0)
		test.Must(t, err)
	})
}
