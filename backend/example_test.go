package backend_test

import (
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"

	"cowblk/backend"
	"cowblk/cow"
	"cowblk/cow/layer"
	"cowblk/cow/vfs"
	"cowblk/vhost/frontend"
)

// A disk without a base is served on a UNIX socket, to one front-end after another. QEMU would
// connect to the socket; here a test front-end writes through a ring.
func ExampleDevice_Serve() {
	dir, err := os.MkdirTemp("", "example")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	paths := layer.Paths{Map: filepath.Join(dir, "map"), Data: filepath.Join(dir, "data")}
	head, err := layer.CreateHead(vfs.OS{}, paths, layer.CreateParams{Size: 1 << 20})
	if err != nil {
		panic(err)
	}
	if err := head.Close(); err != nil {
		panic(err)
	}
	disk, err := cow.Open(cow.Spec{Layers: []layer.Paths{paths}}, cow.Options{})
	if err != nil {
		panic(err)
	}
	defer disk.Close()
	device, err := backend.NewDevice(disk, backend.DeviceOptions{Name: "vm1"})
	if err != nil {
		panic(err)
	}

	socket := filepath.Join(dir, "vm1.sock")
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		panic(err)
	}
	served := make(chan error)
	go func() {
		conn, err := listener.AcceptUnix()
		if err == nil {
			err = device.Serve(conn, slog.New(slog.DiscardHandler))
		}
		served <- err
	}()

	frontEnd, err := frontend.Dial(socket, frontend.Options{})
	if err != nil {
		panic(err)
	}
	driver := frontEnd.Driver(0)
	if _, err := driver.WriteAt([]byte("hello, block device"+string(make([]byte, 493))),
		0); err != nil {
		panic(err)
	}
	if err := driver.Flush(); err != nil {
		panic(err)
	}
	frontEnd.Close()
	fmt.Println("session:", <-served)

	sector := make([]byte, 512)
	if _, err := disk.ReadAt(sector, 0); err != nil {
		panic(err)
	}
	fmt.Printf("%s\n", sector[:19])
	// Output:
	// session: <nil>
	// hello, block device
}
