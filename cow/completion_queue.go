package cow

import (
	"runtime"
	"sync/atomic"

	"cowblk/eventfd"
)

// completionQueue takes completions from other goroutines: the flusher and the workers of the
// thread pool. It has no lock. The channel's thread runs as soon as it is signalled and would wait
// for a lock that the signalling thread still holds: that wait, and the way back through Go's
// scheduler, cost three more thread switches per flush.
type completionQueue struct {
	head      atomic.Pointer[Request] // newest first
	notifier  eventfd.Notifier
	notifying atomic.Int32 // completions under way that may still use notifier
}

// complete posts r to its channel from another goroutine. The channel owns r from then on.
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
	_ = q.notifier.Notify()
}

// drainTo moves all requests to done, in order. For the channel's thread. It resets the signal
// first and takes the list last: a sender that finds fd signalled has its request in the list that
// is taken; any other sender signals again.
func (q *completionQueue) drainTo(done *requestList) {
	if q.notifier.Pending() {
		q.notifier.Drain()
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

// close waits for senders that still use the notifier; their requests have been drained.
func (q *completionQueue) close() error {
	for q.notifying.Load() > 0 {
		runtime.Gosched()
	}
	return q.notifier.Close()
}
