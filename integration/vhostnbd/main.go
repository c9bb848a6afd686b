package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"cowblk/vhost/frontend"
)

// NBD ioctls of the kernel, and flags of its disk (linux/nbd.h).
const (
	nbdSetSock       = 0xab00
	nbdSetBlockSize  = 0xab01
	nbdDoIt          = 0xab03
	nbdClearSock     = 0xab04
	nbdSetSizeBlocks = 0xab07
	nbdSetFlags      = 0xab0a

	flagHasFlags  = 1 << 0
	flagSendFlush = 1 << 2
)

// blockSize is the kernel's logical block size of the disk, in bytes. The disk has whole blocks.
const blockSize = 512

// patience bounds the wait for one answer of the back-end, which may be slow on emulated
// processors.
const patience = 5 * time.Minute

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: vhostnbd SOCKET DEVICE")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "vhostnbd:", err)
		os.Exit(1)
	}
}

func run(socket, device string) (err error) {
	f, err := frontend.Dial(socket, frontend.Options{Timeout: patience})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	dev, err := os.OpenFile(device, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("%w: is the kernel's nbd module there?", err)
	}
	defer dev.Close()
	conn, released, err := connect(dev, f.Capacity())
	if err != nil {
		return err
	}
	err = serve(conn, f.Driver(0))
	// The kernel sees the end of the connection and releases the device.
	return errors.Join(err, conn.Close(), <-released)
}

// connect gives the device a connection and returns the other end. released receives the result
// when the kernel no longer uses the device.
func connect(dev *os.File, size int64) (conn net.Conn, released <-chan error, err error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "nbd"), os.NewFile(uintptr(pair[1]),
		"nbd, kernel's end")
	defer ours.Close()   // FileConn has a duplicate
	defer theirs.Close() // the kernel has a duplicate
	fd := int(dev.Fd())
	for _, set := range []struct{ request, value int }{
		{nbdSetBlockSize, blockSize},
		{nbdSetSizeBlocks, int(size / blockSize)},
		{nbdSetFlags, flagHasFlags | flagSendFlush},
		{nbdSetSock, pair[1]},
	} {
		if err := unix.IoctlSetInt(fd, uint(set.request), set.value); err != nil {
			return nil, nil, fmt.Errorf("%s: ioctl %#x: %w", dev.Name(), set.request, err)
		}
	}
	if conn, err = net.FileConn(ours); err != nil {
		return nil, nil, errors.Join(err, unix.IoctlSetInt(fd, nbdClearSock, 0))
	}
	ended := make(chan error, 1)
	go func() {
		// NBD_DO_IT lasts as long as the device is in use.
		runtime.LockOSThread()
		if err := unix.IoctlSetInt(fd, nbdDoIt, 0); err != nil {
			ended <- fmt.Errorf("%s: %w", dev.Name(), err)
		}
		close(ended)
	}()
	return conn, ended, nil
}
