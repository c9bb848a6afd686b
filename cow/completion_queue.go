package cow

import (
	"runtime"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// completionQueue takes completions from other goroutines, the flusher's and the crew's.
// It has no lock: the channel's thread runs the moment it is signalled, and would
// wait for one that the signaller still holds. That wait, and the way back from it
// through Go's scheduler, cost three more switches of threads a flush.
type completionQueue struct {
	head      atomic.Pointer[Request] // last come first
	signalled atomic.Bool             // fd is readable, or is about to be
	notifying atomic.Int32            // completions that may still use fd
	fd        int                     // eventfd
	word      [8]byte                 // its number, kept here so that no call allocates
}

// complete hands r, which belongs to its channel from then on, over from another
// goroutine.
func (r *Request) complete() {
	q := &r.ch.completions
	q.notifying.Add(1)
	defer q.notifying.Add(-1)
	for {
		r.next = q.head.Load()
		if q.head.CompareAndSwap(r.next, r) {
			break
		}
	}
	if q.signalled.Swap(true) {
		return
	}
	// Which number is added (the byte order decides) does not matter, nor that the
	// counter may be full, for then it is readable.
	_, _ = unix.Write(q.fd, eventfdOne)
}

// drainTo moves what has come, in order. For the channel's thread. The signal goes
// first and the list last: who finds fd armed has a request in the list that is
// taken, who does not signals anew.
func (q *completionQueue) drainTo(done *requestList) {
	if q.signalled.Load() {
		_, _ = unix.Read(q.fd, q.word[:])
		q.signalled.Store(false)
	}
	var first *Request
	for r := q.head.Swap(nil); r != nil; {
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
func (q *completionQueue) close() error {
	for q.notifying.Load() > 0 {
		runtime.Gosched()
	}
	return unix.Close(q.fd)
}
