package cow

import "cowblk/cow/index"

// Op is what a Request asks for.
type Op uint8

// The operations of a disk.
const (
	OpRead Op = iota
	OpWrite
	// OpFlush makes every write that completed before its submission durable.
	OpFlush
	// OpDiscard makes whole blocks of its ranges read as zeros and gives their
	// space back; what a range holds of a block at its edges keeps its content.
	OpDiscard
	// OpWriteZeroes makes every byte of its ranges read as zeros.
	OpWriteZeroes
)

var opNames = [...]string{"read", "write", "flush", "discard", "write-zeroes"}

// String returns the operation's name as used in errors and logs.
func (op Op) String() string {
	if int(op) < len(opNames) {
		return opNames[op]
	}
	return "unknown"
}

// Range is a part of the disk, in bytes, both numbers multiples of 512.
type Range struct{ Offset, Length int64 }

// Request is one operation on a channel. The caller owns it and may use it
// again once Completed has returned it; between Submit and Completed it must
// neither be changed nor moved, and its buffers must stay in place.
type Request struct {
	Op Op
	// Offset and Length, in bytes and multiples of 512, of a read or write.
	Offset, Length int64
	// Data are the buffers of a read or write; at least Length bytes in all.
	Data [][]byte
	// Ranges of a discard or write-zeroes.
	Ranges []Range
	// FUA completes a write, discard or write-zeroes only when it is durable
	// (write-through): after a flush round that covers it.
	FUA bool
	// Slot is the caller's and never touched.
	Slot int
	// Err is the outcome, valid once Completed has returned the request.
	Err error

	ch            *Channel
	next          *Request   // in the flusher's, the crew's or the channel's list
	pending       int        // asynchronous operations under way; the channel's thread counts
	retryBlocking bool       // once they have ended, the crew has to carry the whole out
	mustFlush     bool       // it has set bits that are to be flushed before it completes
	prefetched    prefetched // of a read: see prefetch
}

// prefetched is who owns a read's first blocks, looked up before its turn.
type prefetched struct {
	view  uint64 // seq of the view this is for; 0: nothing has been looked up
	owner index.Owner
	run   uint64 // blocks
}

// fail keeps the first error of a request that is under way.
func (r *Request) fail(err error) {
	switch {
	case err == errWouldWait:
		r.retryBlocking = true
	case err != nil && r.Err == nil:
		r.Err = err
	}
}

// waitsForFlush reports whether r, performed, is not done until it is durable.
func (r *Request) waitsForFlush() bool {
	return (r.FUA || r.mustFlush) && r.Err == nil && (r.Op == OpWrite || r.Op == OpDiscard || r.Op == OpWriteZeroes)
}

// requestList is a first-in first-out list threaded through Request.next, so
// that queueing a request allocates nothing.
type requestList struct{ head, tail *Request }

func (l *requestList) push(r *Request) {
	r.next = nil
	if l.tail == nil {
		l.head = r
	} else {
		l.tail.next = r
	}
	l.tail = r
}

func (l *requestList) pop() *Request {
	r := l.head
	if r == nil {
		return nil
	}
	l.head = r.next
	if l.head == nil {
		l.tail = nil
	}
	r.next = nil
	return r
}

// take moves everything out of l.
func (l *requestList) take() requestList {
	t := *l
	*l = requestList{}
	return t
}
