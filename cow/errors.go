package cow

import (
	"errors"

	"golang.org/x/sys/unix"

	"cowblk/cow/layer"
)

// Errors of opening a stack, beside those of package layer. Each is wrapped with the file, the
// expected and the found value.
var (
	// ErrSpec: the description of the stack is inconsistent (no layers and no base, a writable disk
	// without a head, a negative offset).
	ErrSpec = errors.New("bad stack description")
	// ErrMismatch: a layer does not belong in its place of the stack.
	ErrMismatch = layer.ErrMismatch
	// ErrBaseChanged: the base is not the one that the layers were made over.
	ErrBaseChanged = errors.New("base has changed")
)

// Errors of requests and of running disks.
var (
	// ErrReadOnly: a write, discard or write-zeroes on a disk opened read-only.
	ErrReadOnly = errors.New("disk is read-only")
	// ErrFailed: an earlier flush failed, so that it is unknown which writes reached the disk. It
	// is sticky: reads go on, everything else is refused until the disk is opened again.
	ErrFailed = errors.New("disk is read-only after a failed flush")
	// ErrRange: a request, or one of its ranges, does not lie inside the disk, or its buffers are
	// shorter than its length.
	ErrRange = errors.New("request outside the disk or its buffers")
	// ErrTruncated: a file of the stack is shorter than its content.
	ErrTruncated = errors.New("file has become shorter than its content")
	// ErrFault: the caller's buffer has lost its backing memory.
	ErrFault = errors.New("buffer is not accessible")
	// ErrOp: the request's Op is not defined here.
	ErrOp = errors.New("unknown operation")
)

// errWouldWait: the request would block the queue's thread and goes to the disk's thread pool. It
// never leaves the package.
var errWouldWait = errors.New("request would wait")

// Errors of closing and promoting.
var (
	// ErrInFlight: a channel with requests in flight was closed, or a disk with open channels.
	ErrInFlight = errors.New("still in use")
	// ErrClosed: the disk was closed.
	ErrClosed = errors.New("disk is closed")
	// ErrPromoting: another promotion of the disk is prepared and not swapped.
	ErrPromoting = errors.New("another promotion is under way")
	// ErrCancelled: the promotion was cancelled before its swap.
	ErrCancelled = errors.New("promotion was cancelled")
)

// NoSpace reports whether err says that the file system or a quota is full and nothing was lost:
// the same request may succeed later. A sync that failed is excluded: the kernel may have dropped
// what it could not write.
func NoSpace(err error) bool {
	return (errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)) &&
		!errors.Is(err, ErrFailed) && !errors.Is(err, layer.ErrSyncFailed)
}
