package backend

import (
	"encoding/binary"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"cowblk/eventfd"
	"cowblk/internal/test"
	"cowblk/vhost"
	"cowblk/vhost/blk"
	"cowblk/vhost/virtq"
)

// What is no eventfd is refused where one belongs: writing to it could wait for ever (a full pipe,
// a file of a user's own file system), reading it, too.
func TestForeignEventFDs(t *testing.T) {
	var pipe [2]int
	test.Must(t, unix.Pipe2(pipe[:], unix.O_CLOEXEC))
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	test.Must(t, err)
	memfd, err := unix.MemfdCreate("no eventfd", unix.MFD_CLOEXEC)
	test.Must(t, err)
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	test.Must(t, err)
	defer null.Close()
	dir, err := os.Open(t.TempDir())
	test.Must(t, err)
	defer dir.Close()
	timer, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_CLOEXEC)
	test.Must(t, err)
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	test.Must(t, err)
	for _, fd := range []int{pipe[0], pipe[1], pair[0], pair[1], memfd, timer, epoll} {
		defer unix.Close(fd)
	}
	to := newTarget(t, targetDisk, DeviceOptions{})
	a := newAttacker(t, to)
	a.run()
	for name, fd := range map[string]int{
		"read end of a pipe": pipe[0], "write end of a pipe": pipe[1], "socket": pair[0],
		"memfd":     memfd,
		"/dev/null": int(null.Fd()), "directory": int(dir.Fd()), "timerfd": timer, "epoll": epoll,
	} {
		for _, r := range []vhost.Request{vhost.SetVringKick, vhost.SetVringCall,
			vhost.SetVringErr} {
			if a.ask(r, u64(0), fd) == 0 {
				t.Errorf("%v: %s was accepted", r, name)
			}
		}
	}
	a.write(0) // the ring goes on with the descriptors it had
	a.send(vhost.SetVringCall, 0, u64(0), pipe[1])
	test.ErrorIs(t, a.leave(), vhost.ErrProtocol, "session")
}

// A front-end makes its eventfds blocking again, and full or empty, so that a write or read of them
// waits. The queue may wait; its end and queries of its state may not.
func TestEventFDsThatBlock(t *testing.T) {
	for _, name := range []string{"call", "err", "kick"} {
		t.Run(name, func(t *testing.T) {
			to := newTarget(t, targetDisk, DeviceOptions{})
			a := newAttacker(t, to)
			a.run()
			fd := map[string]int{"call": a.call, "err": a.err, "kick": a.kick}[name]
			rounds := 3 // each takes as long as it takes to notice
			if name == "kick" {
				rounds = 200 // it has to come between two system calls
			}
			for range rounds {
				blockFor(t, fd, name != "kick")
				switch name {
				case "call":
					a.link(0, a.request(0, blk.TypeIn, 0, virtq.Desc{Addr: atkData, Len: 512,
						Flags: virtq.DescWrite}))
					a.offer(0)
				case "err":
					a.offer(atkNum) // no such head
				case "kick":
					_ = eventfd.Signal(fd)
					// Before the worker, or not.
					_, _ = unix.Preadv2(fd, [][]byte{make([]byte, 8)}, -1, unix.RWF_NOWAIT)
				}
				to.dev.Stats()
				a.send(vhost.GetVringBase, 0, vringState(0, 0))
				if _, ok := a.receive(); !ok {
					t.Fatal(a.leave())
				}
				test.Must(t, unix.SetNonblock(fd, true))
				a.restart()
			}
			test.Check(t, a.leave())
		})
	}
}

// blockFor makes an eventfd blocking, and full or empty.
func blockFor(t *testing.T, fd int, full bool) {
	t.Helper()
	test.Must(t, unix.SetNonblock(fd, true))
	drain(fd)
	if full {
		b := binary.NativeEndian.AppendUint64(nil, 1<<64-2)
		if _, err := unix.Write(fd, b); err != nil && err != unix.EAGAIN {
			t.Fatal(err)
		}
	}
	test.Must(t, unix.SetNonblock(fd, false))
}
