package backend

import (
	"errors"

	"golang.org/x/sys/unix"
)

// waiter is where an idle worker sleeps until the driver kicks, a completion arrives from another
// goroutine, or a function is scheduled. The worker is locked to its thread and polls by itself;
// the runtime's network poller is slower.
type waiter struct {
	wake  int  // eventfd, ours
	kick  int  // eventfd, the driver's; -1 = none
	timer bool // there is no kick to wait for: look at the ring every kicklessPoll
	// kicked: the driver's kick has ended a block. The worker clears it.
	kicked bool
	count  [8]byte
	fds    [3]unix.PollFd
}

// kicklessPoll is the time in milliseconds that a worker sleeps between two looks at a ring without
// a kick eventfd (VHOST_USER_VRING_NOFD).
const kicklessPoll = 1

func newWaiter(kick, completions int) (waiter, error) {
	wake, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	if err != nil {
		return waiter{}, err
	}
	if kick >= 0 {
		if err := unix.SetNonblock(kick, true); err != nil {
			unix.Close(wake)
			return waiter{}, err
		}
	}
	w := waiter{wake: wake, kick: kick, timer: kick < 0}
	w.fds[0] = unix.PollFd{Fd: int32(wake), Events: unix.POLLIN}
	w.fds[1] = unix.PollFd{Fd: int32(completions), Events: unix.POLLIN}
	w.fds[2] = unix.PollFd{Fd: int32(kick), Events: unix.POLLIN}
	return w, nil
}

// listenKick sets whether a kick ends the next block.
func (w *waiter) listenKick(on bool) {
	w.fds[2].Fd = -1 // poll ignores negative descriptors
	if on && !w.timer {
		w.fds[2].Fd = int32(w.kick)
	}
}

// block sleeps until there is something to do. Spurious returns are allowed.
func (w *waiter) block() {
	timeout := -1
	if w.timer {
		timeout = kicklessPoll
	}
	if _, err := unix.Poll(w.fds[:], timeout); err != nil {
		return // EINTR; any other error comes again at the next call
	}
	if w.fds[0].Revents != 0 {
		w.drain(w.wake)
	}
	if w.fds[1].Revents != 0 {
		w.drain(int(w.fds[1].Fd)) // signals of the I/O engine
	}
	if w.fds[2].Revents == 0 {
		return
	}
	w.kicked = true
	if w.fds[2].Revents&unix.POLLIN == 0 || !w.drain(w.kick) {
		// Not an eventfd: it may stay readable for ever and make the worker spin.
		w.timer = true
	}
}

func (w *waiter) close() {
	closeFD(w.wake)
	closeFD(w.kick)
}

// one is the value written to an eventfd: any number but 0 works, in either byte order. It is a
// package variable because it may escape; so is count in waiter.
var one = []byte{1, 0, 0, 0, 0, 0, 0, 0}

// signal adds to the eventfd's count; fd -1 is no eventfd.
func signal(fd int) {
	if fd < 0 {
		return
	}
	for {
		// EAGAIN: the counter is full, so the other side has a signal pending.
		if _, err := unix.Write(fd, one); !errors.Is(err, unix.EINTR) {
			return
		}
	}
}

// drain takes the eventfd's count and reports whether fd behaves like one.
func (w *waiter) drain(fd int) bool {
	for {
		n, err := unix.Read(fd, w.count[:])
		switch {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EAGAIN):
			return true
		default:
			return err == nil && n == len(w.count)
		}
	}
}

func closeFD(fd int) {
	if fd >= 0 {
		unix.Close(fd)
	}
}
