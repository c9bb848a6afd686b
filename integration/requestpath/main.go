// Command requestpath performs a few requests of 4 KiB and writes the coverage counters of each to
// a directory below its argument. Its test counts the source files that a request passes;
// docs/internals/request.md walks through them.
package main

import (
	"log"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime/coverage"
	"time"

	"cowblk/backend"
	"cowblk/cow/cowtest"
	"cowblk/cow/vfs"
	"cowblk/vhost/frontend"
)

func main() {
	dir := os.Args[1]
	rig, err := cowtest.NewRig(dir, vfs.OS{}, cowtest.Shape{Size: 64 << 20, BlockSize: 4096,
		BaseSize: 64 << 20})
	must(err)
	quiet := slog.New(slog.DiscardHandler)
	dev, err := backend.NewDevice(rig.Disk, backend.DeviceOptions{Name: "traced", Log: quiet})
	must(err)
	socket := &net.UnixAddr{Name: filepath.Join(dir, "socket"), Net: "unix"}
	listener, err := net.ListenUnix("unix", socket)
	must(err)
	go func() {
		conn, err := listener.AcceptUnix()
		must(err)
		must(dev.Serve(conn, quiet))
	}()
	f, err := frontend.Dial(socket.Name, frontend.Options{})
	must(err)
	d, p := f.Driver(0), make([]byte, 4096)
	read := func(off int64) { _, err := d.ReadAt(p, off); must(err) }
	write := func(off int64) { _, err := d.WriteAt(p, off); must(err) }
	read(0) // from now on its page is known to be resident
	write(1 << 20)
	for _, r := range []struct {
		name    string
		request func()
	}{
		{"read of the base", func() { read(0) }},
		{"read of the head", func() { read(1 << 20) }},
		{"first write", func() { write(1<<20 + 4096) }},
	} {
		time.Sleep(100 * time.Millisecond) // the worker is asleep again
		must(coverage.ClearCounters())
		r.request()
		out := filepath.Join(dir, r.name)
		must(os.Mkdir(out, 0o700))
		must(coverage.WriteMetaDir(out))
		must(coverage.WriteCountersDir(out))
	}
}

func must(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
