package backend

import "cowblk/cow"

// ioError logs and reports a request that failed in the engine, at most once in errorLogInterval: a
// guest may retry at any rate. Workers call it, so it must not take d.mu, which is held by callers
// that wait for workers.
func (d *Device) ioError(queue int, io *cow.Request) {
	if !d.ioErrors.Allow() {
		return
	}
	d.log.Error("request failed", "queue", queue, "op", io.Op, "offset", io.Offset,
		"length", io.Length, "err", io.Err)
	d.observer.ioError(d.ErrorEvent(io, ActionReport))
}

// diskFailed reports that the disk has become read-only because a flush failed, maybe one that no
// driver asked for. The disk's flusher calls it once.
func (d *Device) diskFailed(err error) {
	// A request that waited for the same flush need not report it again.
	d.ioErrors.Allow()
	d.observer.ioError(d.ErrorEvent(&cow.Request{Op: cow.OpFlush, Err: err}, ActionReport))
}

// ErrorEvent describes a request that failed in the engine. action: ActionReport, ActionStop or
// ActionWait.
func (d *Device) ErrorEvent(io *cow.Request, action string) IOErrorEvent {
	return IOErrorEvent{d.name, io.Op.String(), io.Offset, io.Length, io.Err.Error(),
		cow.NoSpace(io.Err), action}
}

// IOErrorEvent is the data of COW_IO_ERROR.
type IOErrorEvent struct {
	Disk      string `json:"disk"`
	Operation string `json:"operation"`
	Offset    int64  `json:"offset"` // bytes
	Length    int64  `json:"length"` // bytes
	Error     string `json:"reason"`
	NoSpace   bool   `json:"nospace"` // it would succeed with more space
	Action    string `json:"action"`  // ActionReport, ActionStop or ActionWait
}

// Actions after a failed request. The first two are QEMU's words (BlockErrorAction).
const (
	ActionReport = "report" // the guest gets the error
	ActionStop   = "stop"   // the request waits, and the guest is stopped
	ActionWait   = "wait"   // the request waits
)
