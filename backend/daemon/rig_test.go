package daemon

import (
	"cmp"
	"context"
	"io"
	"log/slog"
	"path/filepath"
	"testing"

	"cowblk/backend"
	"cowblk/backend/backendtest"
	"cowblk/backend/control"
	"cowblk/cow/store"
	"cowblk/cow/vfs"
	"cowblk/vhost/frontend"
)

// served is a disk without a store that is exported on a socket.
type served struct {
	t      testing.TB
	export *Export
	socket string
}

func serve(t testing.TB) *served { return serveLogged(t, io.Discard) }

func serveLogged(t testing.TB, log io.Writer) *served {
	t.Helper()
	disk := backendtest.NewDisk(t, vfs.OS{})
	s := &served{t: t, socket: filepath.Join(disk.Dir, "sock")}
	d := newDaemon(Options{Log: slog.New(slog.NewTextHandler(log, nil))})
	dev, err := backend.NewDevice(disk.Disk, backend.DeviceOptions{Name: "test", Log: slog.New(slog.DiscardHandler)})
	must(t, err)
	l, err := control.ListenUnix(s.socket, "")
	must(t, err)
	s.export = &Export{listener: l}
	s.export.setDevice(dev, d)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.export.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("export: %v", err)
		}
	})
	return s
}

// newStore makes a store with empty disks of these names.
func newStore(t testing.TB, files vfs.FS, disks ...string) *store.Store {
	t.Helper()
	s, err := store.Open(filepath.Join(t.TempDir(), "s"), store.Options{FS: files})
	must(t, err)
	for _, name := range disks {
		_, err := s.Create(t.Context(), name, store.CreateOptions{Size: backendtest.Size})
		must(t, err)
	}
	return s
}

// open opens a daemon, which the test's end closes.
func open(t testing.TB, o Options) *Daemon {
	t.Helper()
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	d := openUnowned(t, o)
	t.Cleanup(func() {
		_, stop := d.Start(ended) // closes the sockets
		must(t, stop())
	})
	return d
}

// start is open, and calls Run. alive ends when Run returns.
func start(t testing.TB, o Options) (d *Daemon, alive context.Context) {
	t.Helper()
	d = openUnowned(t, o)
	alive, stop := d.Start(context.Background())
	t.Cleanup(func() { must(t, stop()) })
	return d, alive
}

func openUnowned(t testing.TB, o Options) *Daemon {
	t.Helper()
	o.Log, o.Cow.LoseUnflushed = cmp.Or(o.Log, slog.New(slog.DiscardHandler)), true
	d, err := Open(t.Context(), o)
	must(t, err)
	return d
}

// quietDaemon serves the disk "test" of a store.
func quietDaemon(t *testing.T, log io.Writer, o HookOptions) *Daemon {
	return open(t, Options{Log: slog.New(slog.NewTextHandler(log, nil)), Store: newStore(t, nil, "test"), Disks: []string{"test"}, Hooks: o})
}

// tag promotes the disk "test".
func tag(t testing.TB, d *Daemon, tags ...string) {
	t.Helper()
	for _, tag := range tags {
		_, err := d.promote(t.Context(), PromoteArgs{Disks: []string{"test"}, Tag: tag}, "")
		must(t, err)
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	backendtest.Must(t, err)
}

func (s *served) dial(o frontend.Options) *frontend.Frontend {
	s.t.Helper()
	f, err := frontend.Dial(s.socket, o)
	must(s.t, err)
	return f
}
