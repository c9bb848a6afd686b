package aio

import (
	"errors"

	"golang.org/x/sys/unix"
)

// MaxIovecs is the number of iovecs of one operation at most: the kernel's UIO_MAXIOV.
const MaxIovecs = 1024

// Completion is the outcome of one operation.
type Completion struct {
	ID  uint64     // as given to Start
	N   int        // bytes transferred when Err is 0; may be short, 0 at end of file
	Err unix.Errno // 0: none
}

// MaxDepth is the greatest number of operations in flight of an engine.
const MaxDepth = 4096

var (
	// ErrForeignThread: an engine was used on a thread that its ring does not belong to, or closed
	// there while the ring's own thread had operations in flight.
	ErrForeignThread = errors.New("the ring belongs to another thread")

	// ErrOptions: an argument of New is out of bounds.
	ErrOptions = errors.New("options of an I/O engine")
)
