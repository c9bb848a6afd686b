package cow

import (
	"runtime"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// remoteList takes completions from other goroutines, the flusher's and the crew's.
// It has no lock: the channel's thread runs the moment it is signalled, and would
// wait for one that the signaller still holds. That wait, and the way back from it
// through Go's scheduler, cost three more switches of threads a flush.
type remoteList struct {
	head    atomic.Pointer[Request] // last come first
	armed   atomic.Bool             // fd is readable, or is about to be
	signals atomic.Int32            // completions that may still use fd
	fd      int                     // eventfd
	word    [8]byte                 // its number, kept here so that no call allocates
}

// complete hands r, which belongs to its channel from then on, over from another
// goroutine.
func (r *Request) complete() {
	l := &r.ch.remote
	l.signals.Add(1)
	defer l.signals.Add(-1)
	for {
		r.next = l.head.Load()
		if l.head.CompareAndSwap(r.next, r) {
			break
		}
	}
	if l.armed.Swap(true) {
		return
	}
	// Which number is added (the byte order decides) does not matter, nor that the
	// counter may be full, for then it is readable.
	_, _ = unix.Write(l.fd, bellStroke)
}

// drainTo moves what has come, in order. For the channel's thread. The signal goes
// first and the list last: who finds fd armed has a request in the list that is
// taken, who does not signals anew.
func (l *remoteList) drainTo(done *requestList) {
	if l.armed.Load() {
		_, _ = unix.Read(l.fd, l.word[:])
		l.armed.Store(false)
	}
	var first *Request
	for r := l.head.Swap(nil); r != nil; {
		next := r.next
		r.next = first
		first, r = r, next
	}
	for r := first; r != nil; {
		next := r.next
		done.push(r)
		r = next
	}
}

// close waits for signals on their way, whose requests have been drained.
func (l *remoteList) close() error {
	for l.signals.Load() > 0 {
		runtime.Gosched()
	}
	return unix.Close(l.fd)
}
