package backend

import (
	"errors"
	"time"

	"golang.org/x/sys/unix"

	"cowblk/cow"
)

// ioError reports a request that failed in the engine, at most once an
// interval: a guest may retry as fast as it likes. Called by workers, so it must
// not take d.mu, which is held while a worker is waited for.
func (d *Device) ioError(queue int, io *cow.Request) {
	now, next := int64(time.Since(d.made)), d.nextError.Load()
	if now < next || !d.nextError.CompareAndSwap(next, now+int64(errorLogInterval)) {
		return
	}
	d.log.Error("request failed", "queue", queue, "op", io.Op, "offset", io.Offset, "length", io.Length, "err", io.Err)
	d.observer.ioError(d.ErrorEvent(io, ActionReport))
}

// diskFailed tells that the disk has become read-only, because a flush has failed that
// perhaps no driver has asked for. Called once, by the disk's flusher.
func (d *Device) diskFailed(err error) {
	// The request that waited for it, if one did, need not tell it again.
	d.nextError.Store(int64(time.Since(d.made) + errorLogInterval))
	d.observer.ioError(d.ErrorEvent(&cow.Request{Op: cow.OpFlush, Err: err}, ActionReport))
}

// ErrorEvent describes a request that the engine has not been able to carry out.
func (d *Device) ErrorEvent(io *cow.Request, action string) IOErrorEvent {
	return IOErrorEvent{d.name, io.Op.String(), io.Offset, io.Length, io.Err.Error(), LacksSpace(io.Err), action}
}

// IOErrorEvent is the data of COW_IO_ERROR.
type IOErrorEvent struct {
	Disk      string `json:"disk"`
	Operation string `json:"operation"`
	Offset    int64  `json:"offset"` // bytes
	Length    int64  `json:"length"` // bytes
	Error     string `json:"reason"`
	NoSpace   bool   `json:"nospace"` // it would succeed if there were more space
	Action    string `json:"action"`  // one of those below
}

// What becomes of a request that failed, and of its guest; the first two are QEMU's
// words (BlockErrorAction).
const (
	ActionReport = "report" // the guest is told
	ActionStop   = "stop"   // the request waits, and the guest is paused
	ActionWait   = "wait"   // the request waits
)

// LacksSpace reports whether a request can succeed later, when there is space.
// Not so on a disk that a failed sync has ended.
func LacksSpace(err error) bool {
	return (errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)) && !errors.Is(err, cow.ErrFailed)
}
