package backend

import (
	"time"

	"golang.org/x/sys/unix"
)

// unblockAfter is the time a worker may take to answer before unblockEventfds is called. Long I/O
// is the usual reason; the call does no harm then.
const unblockAfter = 100 * time.Millisecond

// waitFor returns true when c is closed, false when the worker has ended.
//
// The front-end shares the flags and counters of its eventfds with this process. A front-end that
// makes a call eventfd blocking again and fills its counter stops the worker in signal; an empty
// kick eventfd can do the same to drain. waitFor then frees the worker; else neither the queue nor
// the session would ever end.
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

// unblockEventfds frees a worker that is blocked on an eventfd. Signals stay: a full counter
// becomes a small one, and a spurious kick does no harm.
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

// writable reports whether a write to the eventfd would succeed at once.
func writable(fd int) bool {
	fds := [1]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
	n, err := unix.Poll(fds[:], 0)
	return err == nil && n == 1
}
