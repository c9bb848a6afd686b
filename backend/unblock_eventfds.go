package backend

import (
	"time"

	"golang.org/x/sys/unix"
)

// unblockAfter is how long a worker may take to answer before its eventfds are
// looked at. Long I/O is the usual reason, and no harm is done then.
const unblockAfter = 100 * time.Millisecond

// waitFor returns true when c is closed, false when the worker has ended.
//
// The front-end shares its eventfds' flags and counts with us. One that makes a
// call eventfd blocking again and fills its counter stops the worker in the
// middle of signal; an empty kick eventfd can do the same to drain. The worker
// is then freed from here, or neither the queue nor the session would ever end.
func (w *worker) waitFor(c <-chan struct{}) bool {
	t := time.NewTimer(unblockAfter)
	defer t.Stop()
	for {
		select {
		case <-c:
			return true
		case <-w.ended:
			return false
		case <-t.C:
			w.unblockEventfds()
			t.Reset(unblockAfter)
		}
	}
}

// unblockEventfds lets a worker go that waits for an eventfd. What was signalled stays
// signalled: a full counter becomes a small one, and a kick too many is none too
// few.
func (w *worker) unblockEventfds() {
	w.fdMu.Lock()
	defer w.fdMu.Unlock()
	for _, fd := range []int{w.call, w.errfd} {
		if fd < 0 || writable(fd) || unix.SetNonblock(fd, true) != nil {
			continue
		}
		var count [8]byte
		_, _ = unix.Read(fd, count[:])
		signal(fd)
	}
	if kick := w.wait.kick; kick >= 0 && unix.SetNonblock(kick, true) == nil {
		signal(kick)
	}
}

// writable reports whether a write to the eventfd would not have to wait.
func writable(fd int) bool {
	fds := [1]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
	n, err := unix.Poll(fds[:], 0)
	return err == nil && n == 1
}
