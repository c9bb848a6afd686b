package daemon

import (
	"bytes"
	"cmp"
	"context"
	"log/slog"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"cowblk/backend/backendtest"
	"cowblk/backend/control"
	"cowblk/cow/store"
	"cowblk/cow/vfs"
	"cowblk/internal/test"
	"cowblk/vhost/frontend"
)

// newStore makes a store with empty disks of these names.
func newStore(t testing.TB, files vfs.FS, disks ...string) *store.Store {
	t.Helper()
	s, err := store.Open(filepath.Join(t.TempDir(), "s"), store.Options{FS: files})
	test.Must(t, err)
	for _, name := range disks {
		_, err := s.Create(t.Context(), name, store.CreateOptions{Size: backendtest.Size})
		test.Must(t, err)
	}
	return s
}

// open opens a daemon, which the test's end closes.
func open(t testing.TB, o Options) *Daemon {
	t.Helper()
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	o.Log, o.Cow.LoseUnflushed = cmp.Or(o.Log, slog.New(slog.DiscardHandler)), true
	d, err := Open(t.Context(), o)
	test.Must(t, err)
	t.Cleanup(func() {
		_, stop := d.Start(ended) // closes the sockets
		test.Must(t, stop())
	})
	return d
}

// running is a daemon that serves disks of a store.
type running struct {
	*Daemon
	t     testing.TB
	alive context.Context // ends with Run
	log   *test.Log
	end   func() // closes the daemon, as the test's end does
}

func start(t testing.TB, st *store.Store, o Options, disks ...string) *running {
	t.Helper()
	r := &running{t: t, log: &test.Log{}}
	o.Store, o.Disks, o.Log, o.Cow.LoseUnflushed = st, disks, r.log.Logger(), true
	var err error
	r.Daemon, err = Open(t.Context(), o)
	test.Must(t, err)
	var stop func() error
	r.alive, stop = r.Start(context.Background())
	r.end = sync.OnceFunc(func() { test.Must(t, stop()) })
	t.Cleanup(r.end)
	return r
}

// dial connects a driver to the disk.
func (r *running) dial(disk string, o frontend.Options) *frontend.Frontend {
	r.t.Helper()
	found, err := r.named([]string{disk})
	test.Must(r.t, err)
	f, err := frontend.Dial(found[0].path, o)
	test.Must(r.t, err)
	r.t.Cleanup(func() { f.Close() })
	return f
}

// control connects to the control socket.
func (r *running) control() *control.Client {
	r.t.Helper()
	c, err := control.Dial(r.Daemon.control.Listeners()[0].Path(), 10*time.Second)
	test.Must(r.t, err)
	return c
}

// wantAt fails unless the disk has the byte b in the 4 KiB at off.
func wantAt(t testing.TB, f *frontend.Frontend, b byte, off int64) {
	t.Helper()
	p := make([]byte, 4096)
	_, err := f.Driver(0).ReadAt(p, off)
	test.Must(t, err)
	if !bytes.Equal(p, bytes.Repeat([]byte{b}, 4096)) {
		t.Errorf("the block at %d is not what was written", off)
	}
}

// wantClean fails unless a check of the store finds nothing.
func wantClean(t testing.TB, st *store.Store) {
	t.Helper()
	report, err := st.Check(t.Context(), store.CheckOptions{})
	test.Must(t, err)
	if report.Found+report.Failed != 0 {
		t.Errorf("%+v", report)
	}
}

// quietDaemon serves the disk "test" of a store.
func quietDaemon(t *testing.T, log *test.Log, o HookOptions) *Daemon {
	return open(t, Options{Log: log.Logger(), Store: newStore(t, nil, "test"),
		Disks: []string{"test"}, Hooks: o})
}

// tag promotes the disk "test".
func tag(t testing.TB, d *Daemon, tags ...string) {
	t.Helper()
	for _, tag := range tags {
		_, err := d.promote(t.Context(), PromoteArgs{Disks: []string{"test"}, Tag: tag}, "")
		test.Must(t, err)
	}
}
