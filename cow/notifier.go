package cow

import (
	"cowblk/cow/vfs"
	"cowblk/eventfd"
)

// notifier wakes one goroutine that waits in the kernel, on an eventfd, and not in Go's scheduler.
// The goroutine that a running thread, such as a queue's, makes ready would have to be stolen by
// another thread. That thread sleeps for some 60 µs before it steals: a fifth of the time of a
// flush.
//
// With files that are not the operating system's it uses a Go channel: a test that stops the clock
// while all goroutines wait (testing/synctest) does not see that a goroutine waits in the kernel.
type notifier struct {
	fake chan struct{} // used instead of real unless nil; capacity 1
	real eventfd.Notifier
}

func newNotifier(fsys vfs.FS) (*notifier, error) {
	if _, ok := fsys.(vfs.OS); !ok {
		return &notifier{fake: make(chan struct{}, 1)}, nil
	}
	n := new(notifier)
	return n, n.real.Open()
}

// notify ends the wait under way, or the next one. The waiter sees what was done before notify.
func (n *notifier) notify() {
	if n.fake == nil {
		_ = n.real.Notify()
		return
	}
	select {
	case n.fake <- struct{}{}:
	default: // the waiter has not run since, and will see our changes
	}
}

// wait returns after a notify; one return may stand for many. For one goroutine only.
func (n *notifier) wait() {
	if n.fake != nil {
		<-n.fake
		return
	}
	_ = eventfd.Wait(n.real.FD())
	n.real.Drain()
}

func (n *notifier) close() {
	if n.fake == nil {
		_ = n.real.Close()
	}
}
