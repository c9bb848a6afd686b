package cow

import (
	"fmt"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"cowblk/cow/vfs"
)

// bell wakes one goroutine that waits for work in the kernel, on an eventfd, and
// not in Go's scheduler. A goroutine made ready by a thread that goes on running,
// as a queue's does, has to be stolen from it by another, which sleeps for some
// 60 µs before it dares: a fifth of what a flush takes.
//
// Where the files are not the operating system's it is a channel: a test that
// stops the clock while all goroutines wait (testing/synctest) cannot see that one
// waits in the kernel.
type bell struct {
	soft chan struct{} // used instead of fd unless nil; capacity 1
	fd   int
	rung atomic.Bool // fd is readable, or is about to be
}

func newBell(fsys vfs.FS) (*bell, error) {
	if _, ok := fsys.(vfs.OS); !ok {
		return &bell{soft: make(chan struct{}, 1)}, nil
	}
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	return &bell{fd: fd}, nil
}

// ring lets the next wait, or the one under way, return. What was done before it
// is seen after that.
func (b *bell) ring() {
	if b.soft != nil {
		select {
		case b.soft <- struct{}{}:
		default: // its reader has not looked yet
		}
		return
	}
	if b.rung.Swap(true) {
		return // its reader has not looked yet, and will see what we did
	}
	// Which number is added (the byte order decides) does not matter.
	for _, err := unix.Write(b.fd, bellStroke); err == unix.EINTR; {
		_, err = unix.Write(b.fd, bellStroke)
	}
}

// wait returns after the next ring; of many there may be one return. For one
// goroutine only.
func (b *bell) wait() {
	if b.soft != nil {
		<-b.soft
		return
	}
	var word [8]byte
	for _, err := unix.Read(b.fd, word[:]); err == unix.EINTR; {
		_, err = unix.Read(b.fd, word[:])
	}
	b.rung.Store(false)
}

func (b *bell) close() {
	if b.soft == nil {
		unix.Close(b.fd)
	}
}

var bellStroke = []byte{1, 0, 0, 0, 0, 0, 0, 0}
