package aio

import (
	"errors"
	"fmt"

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

// Options of New.
type Options struct {
	// Depth is the number of operations in flight: 1 to MaxDepth, default DefaultDepth.
	Depth int

	// EventFD is an eventfd signalled when completions arrive. It belongs to the caller and must
	// stay open until Close. 0 or less: none.
	EventFD int
}

// Bounds of Options.Depth.
const (
	DefaultDepth = 128
	MaxDepth     = 4096
)

var (
	// ErrForeignThread: an engine was used on a thread that its ring does not belong to, or closed
	// there while the ring's own thread had operations in flight.
	ErrForeignThread = errors.New("the ring belongs to another thread")

	// ErrOptions: the options of New are out of bounds.
	ErrOptions = errors.New("options of an I/O engine")
)

func (o Options) withDefaults() (Options, error) {
	if o.Depth == 0 {
		o.Depth = DefaultDepth
	}
	if o.Depth < 1 || o.Depth > MaxDepth {
		return o, fmt.Errorf("%w: depth %d, expected 1 to %d", ErrOptions, o.Depth, MaxDepth)
	}
	return o, nil
}
