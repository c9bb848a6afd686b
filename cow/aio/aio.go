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

// Engine performs positional I/O without blocking its caller. It is for one goroutine; the package
// documentation says on which thread.
type Engine interface {
	// Start queues an operation on fd at off, in bytes, with the memory of iov. Nothing reaches the
	// kernel before Submit. iov is copied; its memory, and fd, must stay until the completion was
	// reaped. False: Depth operations are in flight, iov is longer than MaxIovecs, or the engine is
	// closed.
	Start(id uint64, write bool, fd int, iov []unix.Iovec, off int64) bool

	// Submit passes everything queued to the kernel, usually in one system call, and in none if
	// nothing is queued. Each operation started gets exactly one completion. An error says why the
	// kernel refused some operations; these complete with it.
	Submit() error

	// Reap appends the completions to dst, in no particular order. It never blocks. EventFD is
	// signalled for each completion that comes after Reap: a caller of Reap may then wait for
	// EventFD.
	Reap(dst []Completion) []Completion

	// InFlight returns the number of operations queued, in the kernel, or completed and not reaped.
	InFlight() int

	// Name returns "io_uring" or "threads", for a person.
	Name() string

	// Close drops what is in flight: operations not submitted never happen; others are cancelled if
	// the kernel can, or waited for, and their completions are lost. After it has returned nil,
	// nothing accesses callers' memory any more. With nothing in flight any thread may call it;
	// otherwise a ring returns ErrForeignThread on another thread and stays open. A second Close
	// does nothing.
	Close() error
}

// Options of the constructors.
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
	// ErrUnsupported: the kernel has no usable io_uring or forbids it to this process.
	ErrUnsupported = errors.New("io_uring is not available")

	// ErrForeignThread: a ring was used on a thread that it does not belong to, or closed there
	// while its own thread had operations in flight.
	ErrForeignThread = errors.New("the ring belongs to another thread")

	// ErrOptions: a constructor's options are out of bounds.
	ErrOptions = errors.New("options of an I/O engine")
)

// New makes a ring if one works here, otherwise a pool.
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
