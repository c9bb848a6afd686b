package cow

import (
	"fmt"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"cowblk/cow/vfs"
)

// notifier wakes one goroutine that waits for work in the kernel, on an eventfd, and
// not in Go's scheduler. A goroutine made ready by a thread that goes on running,
// as a queue's does, has to be stolen from it by another, which sleeps for some
// 60 µs before it dares: a fifth of what a flush takes.
//
// Where the files are not the operating system's it is a channel: a test that
// stops the clock while all goroutines wait (testing/synctest) cannot see that one
// waits in the kernel.
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

// notify lets the next wait, or the one under way, return. What was done before it
// is seen after that.
func (n *notifier) notify() {
	if n.fake != nil {
		select {
		case n.fake <- struct{}{}:
		default: // its reader has not looked yet
		}
		return
	}
	if n.signalled.Swap(true) {
		return // its reader has not looked yet, and will see what we did
	}
	// Which number is added (the byte order decides) does not matter.
	for _, err := unix.Write(n.fd, eventfdOne); err == unix.EINTR; {
		_, err = unix.Write(n.fd, eventfdOne)
	}
}

// wait returns after the next ring; of many there may be one return. For one
// goroutine only.
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
