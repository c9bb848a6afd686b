package cow

import (
	"fmt"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"cowblk/cow/vfs"
)

// notifier wakes one goroutine that waits in the kernel, on an eventfd, and not in Go's scheduler.
// The goroutine that a running thread, such as a queue's, makes ready would have to be stolen by
// another thread. That thread sleeps for some 60 µs before it steals: a fifth of the time of a
// flush.
//
// With files that are not the operating system's it uses a Go channel: a test that stops the clock
// while all goroutines wait (testing/synctest) does not see that a goroutine waits in the kernel.
type notifier struct {
	fake      chan struct{} // used instead of fd unless nil; capacity 1
	fd        int
	signalled atomic.Bool // fd is readable, or is about to be
}

func newNotifier(fsys vfs.FS) (*notifier, error) {
	if _, ok := fsys.(vfs.OS); !ok {
		return &notifier{fake: make(chan struct{}, 1)}, nil
	}
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	return &notifier{fd: fd}, nil
}

// notify ends the wait under way, or the next one. The waiter sees what was done before notify.
func (n *notifier) notify() {
	if n.fake != nil {
		select {
		case n.fake <- struct{}{}:
		default: // the waiter has not run since, and will see our changes
		}
		return
	}
	if n.signalled.Swap(true) {
		return // the waiter has not run since, and will see our changes
	}
	// The number (the byte order decides which) does not matter.
	for _, err := unix.Write(n.fd, eventfdOne); err == unix.EINTR; {
		_, err = unix.Write(n.fd, eventfdOne)
	}
}

// wait returns after a notify; one return may stand for many. For one goroutine only.
func (n *notifier) wait() {
	if n.fake != nil {
		<-n.fake
		return
	}
	var word [8]byte
	for _, err := unix.Read(n.fd, word[:]); err == unix.EINTR; {
		_, err = unix.Read(n.fd, word[:])
	}
	n.signalled.Store(false)
}

func (n *notifier) close() {
	if n.fake == nil {
		unix.Close(n.fd)
	}
}

var eventfdOne = []byte{1, 0, 0, 0, 0, 0, 0, 0}
