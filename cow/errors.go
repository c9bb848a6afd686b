package cow

import (
	"errors"

	"golang.org/x/sys/unix"

	"cowblk/cow/layer"
)

// Errors of opening a stack, beside those of package layer. Each is wrapped with
// the file, what was expected and what was found.
var (
	// ErrSpec: the description of the stack itself makes no sense (no layers
	// and no base, a writable disk without a head, a negative offset).
	ErrSpec = errors.New("bad stack description")
	// ErrMismatch: a layer does not belong where the stack puts it.
	ErrMismatch = layer.ErrMismatch
	// ErrBaseChanged: the base is not the one that the layers were made over.
	ErrBaseChanged = errors.New("base has changed")
)

// Errors of requests and of running disks.
var (
	// ErrReadOnly: a write, discard or write-zeroes on a disk opened read-only.
	ErrReadOnly = errors.New("disk is read-only")
	// ErrFailed: an earlier flush failed, so that nobody knows which writes
	// reached the disk. It is sticky: reads go on, everything else is refused
	// until the disk is opened again.
	ErrFailed = errors.New("disk is read-only after a failed flush")
	// ErrRange: a request, or one of its ranges, does not lie inside the disk,
	// or its buffers are shorter than its length.
	ErrRange = errors.New("request outside the disk or its buffers")
	// ErrTruncated: a file of the stack ended before content that it must hold.
	ErrTruncated = errors.New("file has become shorter than its content")
	// ErrFault: the caller's buffer is not backed by memory any more.
	ErrFault = errors.New("buffer is not accessible")
	// ErrOp: the request's Op is none of those defined here.
	ErrOp = errors.New("unknown operation")
)

// errWouldWait: the request would make the queue's thread wait, and goes to the
// disk's crew instead. It never leaves the package.
var errWouldWait = errors.New("request would wait")

// Errors of closing and promoting.
var (
	// ErrInFlight: a channel with requests in flight, or a disk with open
	// channels, was closed.
	ErrInFlight = errors.New("still in use")
	// ErrClosed: the disk was closed.
	ErrClosed = errors.New("disk is closed")
	// ErrPromoting: another promotion of the disk is prepared but not swapped.
	ErrPromoting = errors.New("another promotion is under way")
	// ErrCancelled: the promotion was cancelled before its swap.
	ErrCancelled = errors.New("promotion was cancelled")
)

// NoSpace reports whether an error says that the file system, or the user's share of it, is full, and nothing was lost:
// the same may succeed later.
func NoSpace(err error) bool {
	return (errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)) && !errors.Is(err, ErrFailed)
}
