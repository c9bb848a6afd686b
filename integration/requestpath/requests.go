package main

import (
	"net"
	"path/filepath"
	"time"

	"cowblk/backend"
	"cowblk/cow/cowtest"
	"cowblk/cow/vfs"
	"cowblk/vhost/frontend"
)

// requests records single requests of a driver.
func requests(dir string) {
	rig, err := cowtest.NewRig(dir, vfs.OS{}, cowtest.Shape{Size: 64 << 20, BlockSize: 4096,
		BaseSize: 64 << 20})
	must(err)
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
	const page = 16 << 20 // bytes whose owners are in one page of the index
	read(0)               // from now on its page is known to be resident
	write(1 << 20)
	for _, r := range []struct {
		name    string
		request func()
	}{
		{"read of the base", func() { read(0) }},
		{"read of the head", func() { read(1 << 20) }},
		{"overwrite", func() { write(1 << 20) }},
		{"first write beside another", func() { write(1<<20 + 4096) }},
		{"first write of half a block", func() {
			_, err := d.WriteAt(p[:2048], 1<<20+8192)
			must(err)
		}},
		{"first write in a new page of the index", func() { write(page) }},
		{"flush", func() { must(d.Flush()) }},
		{"first write after a flush", func() { write(1<<20 + 12288) }},
		{"", func() { must(d.Flush()) }},
		{"first write in a new page of the index after a flush", func() { write(2 * page) }},
	} {
		time.Sleep(100 * time.Millisecond) // the worker is asleep again
		if r.name == "" {                  // only prepares the next
			r.request()
			continue
		}
		record(dir, r.name, r.request)
	}
}
