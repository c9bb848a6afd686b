package cow

import "cowblk/cow/index"

// Op is the operation of a Request.
type Op uint8

// The operations of a disk.
const (
	OpRead Op = iota
	OpWrite
	// OpFlush makes every write that completed before its submission durable.
	OpFlush
	// OpDiscard makes the whole blocks of its ranges read as zeros and frees their space. Parts of
	// blocks at the edges of a range keep their content.
	OpDiscard
	// OpWriteZeroes makes every byte of its ranges read as zeros.
	OpWriteZeroes
)

var opNames = [...]string{"read", "write", "flush", "discard", "write-zeroes"}

// String returns the operation's name for errors and logs.
func (op Op) String() string {
	if int(op) < len(opNames) {
		return opNames[op]
	}
	return "unknown"
}

// Range is a part of the disk, in bytes; both numbers are multiples of 512.
type Range struct{ Offset, Length int64 }

// Request is one operation on a channel. The caller owns it and may reuse it once Completed has
// returned it. Between Submit and Completed it must not be changed or moved, and its buffers must
// stay in place.
type Request struct {
	Op Op
	// Offset and Length of a read or write, in bytes: multiples of 512.
	Offset, Length int64
	// Data are the buffers of a read or write; at least Length bytes in all.
	Data [][]byte
	// Ranges of a discard or write-zeroes.
	Ranges []Range
	// FUA (write-through): a write, discard or write-zeroes completes only once it is durable,
	// after a flush round that covers it.
	FUA bool
	// Slot is for the caller and never changed.
	Slot int
	// Err is the outcome; it is valid once Completed has returned the request.
	Err error

	ch            *Channel
	next          *Request   // in the list of the flusher, thread pool or channel
	pending       int        // asynchronous operations under way; only the channel's thread counts
	retryBlocking bool       // once they have ended, the thread pool performs the whole request
	mustFlush     bool       // it must be flushed before it completes: see unsharedBits
	prefetched    prefetched // of a read: see prefetch
}

// prefetched is the owner of a read's first blocks, looked up before the read is served.
type prefetched struct {
	view  uint64 // seq of the view of the lookup; 0: none
	owner index.Owner
	run   uint64 // blocks
}

// fail keeps the first error of a request in flight.
func (r *Request) fail(err error) {
	switch {
	case err == errWouldWait:
		r.retryBlocking = true
	case err != nil && r.Err == nil:
		r.Err = err
	}
}
