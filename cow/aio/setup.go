package aio

import (
	"errors"
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// mode is a set of set-up flags that belong together.
type mode struct {
	name  string
	flags uint32
}

const setupDeferred = setupDisabled | setupSubmitAll | setupSingleIssuer | setupDeferTaskrun |
	setupTaskrunFlag

// modes lists them, best first. A kernel that does not know a flag returns EINVAL.
//
// All begin disabled: New reports an io_uring that is not allowed, and the ring belongs to the
// thread that first uses it. With deferred task work the kernel finishes transfers only when their
// thread asks for it; with cooperative task work, whenever the thread enters the kernel; without
// either, it interrupts the thread.
var modes = [...]mode{
	{"deferred, no array", setupDeferred | setupNoSQArray},
	{"deferred", setupDeferred},
	{"cooperative", setupDisabled | setupSubmitAll | setupCoopTaskrun | setupTaskrunFlag},
	{"plain", setupDisabled},
}

// New makes an engine for up to depth operations in flight, 1 to MaxDepth. eventFD is an eventfd
// that is signalled when completions arrive; it belongs to the caller and must stay open until
// Close; 0 or less: none. ErrOptions: an argument is out of bounds. errors.ErrUnsupported, wrapped
// with the kernel's error: the kernel is older than 5.10 or forbids io_uring (the sysctl
// kernel.io_uring_disabled, a seccomp filter, a limit of locked memory).
func New(depth, eventFD int) (*Engine, error) {
	var err error
	for _, m := range modes {
		var e *Engine
		if e, err = newEngine(depth, eventFD, m); err == nil {
			return e, nil
		}
		if !errors.Is(err, unix.EINVAL) {
			break
		}
	}
	return nil, err
}

func newEngine(depth, eventFD int, m mode) (*Engine, error) {
	if depth < 1 || depth > MaxDepth {
		return nil, fmt.Errorf("%w: depth %d, expected 1 to %d", ErrOptions, depth, MaxDepth)
	}
	k, err := setup(depth, m.flags)
	if err != nil {
		return nil, setupError(err)
	}
	// A seccomp filter may allow the set-up and not the calls that follow. A disabled ring returns
	// EBADFD.
	if _, errno := k.enter(0, 0); errno != unix.EBADFD {
		k.release()
		if errno == 0 {
			errno = unix.ENOSYS
		}
		return nil, setupError(errno)
	}
	if eventFD > 0 {
		if errno := k.setEventFD(eventFD); errno != 0 {
			k.release()
			if errno == unix.EINVAL || errno == unix.EBADF {
				// Not wrapped: EINVAL would look like an unknown flag.
				return nil, fmt.Errorf("%w: descriptor %d is no eventfd (%v)", ErrOptions, eventFD,
					errno)
			}
			return nil, setupError(errno)
		}
	}
	s, err := newSlots(depth)
	if err != nil {
		k.release()
		return nil, err
	}
	deferred := m.flags&setupDeferTaskrun != 0
	return &Engine{
		slots:  s,
		k:      k,
		failed: make([]failure, 0, depth),
		// See mute for the reason.
		canMute:   deferred && eventFD > 0 && runtime.GOARCH == "amd64",
		single:    m.flags&setupSingleIssuer != 0,
		cancelAny: m.flags&(setupDeferTaskrun|setupCoopTaskrun) != 0,
	}, nil
}

// refused distinguishes an environment without io_uring from a failure. ENOMEM is the result of a
// limit of locked memory on kernels before 5.12.
func refused(err error) bool {
	switch err {
	case unix.ENOSYS, unix.EPERM, unix.EACCES, unix.EINVAL, unix.EOPNOTSUPP, unix.ENOMEM:
		return true
	}
	return false
}

func setupError(err error) error {
	if refused(err) {
		return fmt.Errorf("set up an io_uring: %w: %w", errors.ErrUnsupported, err)
	}
	return fmt.Errorf("set up an io_uring: %w", err)
}
