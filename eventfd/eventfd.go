package eventfd

import (
	"fmt"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// New returns a non-blocking eventfd with count 0.
func New() (fd int, err error) {
	fd, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return -1, fmt.Errorf("eventfd: %w", err)
	}
	return fd, nil
}

// Close closes fd, unless it is -1, for no eventfd.
func Close(fd int) {
	if fd >= 0 {
		unix.Close(fd)
	}
}

// Signal adds one to the count. It does nothing if fd is -1, or if the counter is full: the other
// side has a signal then.
func Signal(fd int) error {
	if fd < 0 {
		return nil
	}
	for {
		switch errno := add(fd, 1); errno {
		case 0, unix.EAGAIN:
			return nil
		case unix.EINTR:
		default:
			return fmt.Errorf("signal an eventfd: %w", errno)
		}
	}
}

// Drain returns the count and resets it; 0 if there was no signal. An error: fd does not behave
// like an eventfd, and may be readable for ever.
func Drain(fd int) (count uint64, err error) {
	for {
		count, n, errno := read(fd)
		switch {
		case errno == 0 && n == 8:
			return count, nil
		case errno == 0:
			return 0, fmt.Errorf("drain an eventfd: %d bytes", n)
		case errno == unix.EAGAIN:
			return 0, nil
		case errno != unix.EINTR:
			return 0, fmt.Errorf("drain an eventfd: %w", errno)
		}
	}
}

// Wait returns when the eventfd has a signal. The thread sleeps in the kernel.
func Wait(fd int) error {
	fds := [1]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for {
		if _, err := unix.Poll(fds[:], -1); err != unix.EINTR {
			return err
		}
	}
}

// UnblockSignal frees a thread that waits in Signal, because another process has made the eventfd
// blocking and filled its counter. A full counter becomes a small one, so the signal stays.
func UnblockSignal(fd int) {
	fds := [1]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
	if n, err := unix.Poll(fds[:], 0); err == nil && n == 1 {
		return // a write does not wait
	}
	if fd >= 0 && unix.SetNonblock(fd, true) == nil {
		_, _ = Drain(fd)
		_ = Signal(fd)
	}
}

// UnblockDrain frees a thread that waits in Drain, because another process has made the eventfd
// blocking and drained it. The thread gets a spurious signal.
func UnblockDrain(fd int) {
	if fd >= 0 && unix.SetNonblock(fd, true) == nil {
		_ = Signal(fd)
	}
}

// Notifier is an eventfd of this process that many goroutines signal and one drains. Signals that
// were not drained yet cost no system call.
type Notifier struct {
	fd      int
	pending atomic.Bool // fd is readable, or is about to be
}

// Open makes the eventfd.
func (n *Notifier) Open() (err error) {
	n.fd, err = New()
	return err
}

// FD returns the eventfd, to poll.
func (n *Notifier) FD() int { return n.fd }

// Notify signals. The goroutine that drains then sees what was done before.
func (n *Notifier) Notify() error {
	if n.pending.Swap(true) {
		return nil
	}
	return Signal(n.fd)
}

// Pending reports whether Notify was called since Drain.
func (n *Notifier) Pending() bool { return n.pending.Load() }

// Drain takes the signals. The caller sees what was done before each Notify that made no system
// call.
func (n *Notifier) Drain() {
	_, _ = Drain(n.fd)
	n.pending.Store(false)
}

// Close closes the eventfd. No Notify may be under way.
func (n *Notifier) Close() error { return unix.Close(n.fd) }
