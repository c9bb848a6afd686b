package backend

import (
	"golang.org/x/sys/unix"

	"cowblk/eventfd"
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
	fds    [3]unix.PollFd
}

// kicklessPoll is the time in milliseconds that a worker sleeps between two looks at a ring without
// a kick eventfd (VHOST_USER_VRING_NOFD).
const kicklessPoll = 1

func newWaiter(kick, completions int) (waiter, error) {
	wake, err := eventfd.New()
	if err != nil {
		return waiter{}, err
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
		_, _ = eventfd.Drain(w.wake)
	}
	if w.fds[1].Revents != 0 {
		_, _ = eventfd.Drain(int(w.fds[1].Fd)) // signals of the I/O engine
	}
	if w.fds[2].Revents == 0 {
		return
	}
	w.kicked = true
	if w.fds[2].Revents&unix.POLLIN != 0 {
		if _, err := eventfd.Drain(w.kick); err == nil {
			return
		}
	}
	// Not an eventfd: it may stay readable for ever and make the worker spin.
	w.timer = true
}

func (w *waiter) close() {
	eventfd.Close(w.wake)
	eventfd.Close(w.kick)
}
