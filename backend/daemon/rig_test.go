package daemon

import (
	"context"
	"log/slog"
	"net"
	"path/filepath"
	"testing"

	"cowblk/backend"
	"cowblk/backend/backendtest"
	"cowblk/cow"
	"cowblk/cow/vfs"
	"cowblk/internal/test"
	"cowblk/vhost/frontend"
)

// served is a disk that is exported on a socket.
type served struct {
	t      testing.TB
	dir    string
	disk   *cow.Disk
	dev    *backend.Device
	export *Export
	socket string
}

func serve(t testing.TB) *served { return serveOn(t, vfs.OS{}) }

// serveOn is serve with files of its own kind. prepare runs before anybody can connect.
func serveOn(t testing.TB, files vfs.FS, prepare ...func(*served)) *served {
	t.Helper()
	d := backendtest.NewDisk(t, files)
	s := &served{t: t, dir: d.Dir, disk: d.Disk, socket: filepath.Join(d.Dir, "sock")}
	log := slog.New(slog.DiscardHandler)
	var err error
	s.dev, err = backend.NewDevice(s.disk, backend.DeviceOptions{Name: "test", Log: log})
	test.Must(t, err)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: s.socket, Net: "unix"})
	test.Must(t, err)
	s.export = NewExport(ExportOptions{Device: s.dev, Listener: l, Log: log})
	for _, f := range prepare {
		f(s)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.export.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		test.Check(t, <-ended, "export")
	})
	return s
}

func (s *served) dial(o frontend.Options) *frontend.Frontend {
	s.t.Helper()
	f, err := frontend.Dial(s.socket, o)
	test.Must(s.t, err)
	return f
}
