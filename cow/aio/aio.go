package aio

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// MaxIovecs is how many iovecs one operation may have: the kernel's UIO_MAXIOV.
const MaxIovecs = 1024

// Completion is the outcome of one operation.
type Completion struct {
	ID  uint64     // as given to Start
	N   int        // bytes transferred when Err is 0; may be short, 0 at end of file
	Err unix.Errno // 0: none
}

// Engine carries positional I/O out without its caller waiting. It is for one
// goroutine; see the package's documentation for the thread that this has to be.
type Engine interface {
	// Start queues an operation on fd at off, in bytes, with the memory that
	// iov describes. Nothing reaches the kernel before Submit. iov is copied;
	// the memory it points to, and fd, must stay until the completion has been
	// reaped. False when Depth operations are in flight, when iov is longer
	// than MaxIovecs, and after Close.
	Start(id uint64, write bool, fd int, iov []unix.Iovec, off int64) bool

	// Submit hands everything queued to the kernel, in one system call as a
	// rule and in none if nothing is queued. Each operation started gets
	// exactly one completion, whatever Submit returns: an error tells why the
	// kernel took some of them not at all, and these complete with it.
	Submit() error

	// Reap appends the completions there are to dst, in no particular order.
	// It never waits. EventFD is signalled for each completion that comes
	// after Reap looked: a caller that has called it may wait for EventFD.
	Reap(dst []Completion) []Completion

	// InFlight is the number of operations queued, in the kernel, or completed
	// and not reaped yet.
	InFlight() int

	// Name says which engine this is, for a person: "io_uring" or "threads".
	Name() string

	// Close gives up what is in flight: operations not submitted never happen,
	// others are cancelled as far as the kernel can, or waited for, and their
	// completions are lost. After it has returned nil nothing touches callers'
	// memory any more. With nothing in flight it may be called on any thread;
	// else a ring says ErrForeignThread there, and exists still. A second Close
	// does nothing.
	Close() error
}

// Options are for the constructors.
type Options struct {
	// Depth is how many operations can be in flight: 1 to MaxDepth, default
	// DefaultDepth.
	Depth int

	// EventFD is an eventfd signalled when completions arrive. It is the
	// caller's and must stay open until Close. 0 (and less): none.
	EventFD int
}

// Bounds of Options.Depth.
const (
	DefaultDepth = 128
	MaxDepth     = 4096
)

var (
	// ErrUnsupported: the kernel has no io_uring that the ring could use, or
	// does not let this process have it.
	ErrUnsupported = errors.New("io_uring is not to be had here")

	// ErrForeignThread: a ring was used on another thread than the one it
	// belongs to, or closed there while that thread had operations in flight.
	ErrForeignThread = errors.New("the ring belongs to another thread")

	// ErrOptions: a constructor's options are out of bounds.
	ErrOptions = errors.New("options of an I/O engine")
)

// New makes a ring if one works here, else a pool.
func New(o Options) (Engine, error) {
	e, err := NewRing(o)
	if errors.Is(err, ErrUnsupported) {
		return NewPool(o)
	}
	return e, err
}

func (o Options) withDefaults() (Options, error) {
	if o.Depth == 0 {
		o.Depth = DefaultDepth
	}
	if o.Depth < 1 || o.Depth > MaxDepth {
		return o, fmt.Errorf("%w: depth %d, expected 1 to %d", ErrOptions, o.Depth, MaxDepth)
	}
	return o, nil
}
