package daemon

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"cowblk/backend"
	"cowblk/backend/control"
	"cowblk/backend/qmp"
	"cowblk/cow"
)

// ENOSPCPolicy is the action for guest requests that find no space.
type ENOSPCPolicy string

const (
	// ENOSPCStop parks them until there is space, and pauses the guest if a monitor is known.
	ENOSPCStop ENOSPCPolicy = "pause"
	// ENOSPCReport fails them.
	ENOSPCReport ENOSPCPolicy = "error"
)

// ParseENOSPCPolicy returns the policy with this name.
func ParseENOSPCPolicy(s string) (ENOSPCPolicy, error) {
	if p := ENOSPCPolicy(s); p == ENOSPCStop || p == ENOSPCReport {
		return p, nil
	}
	return "", fmt.Errorf("%q: expected %s or %s", s, ENOSPCStop, ENOSPCReport)
}

// ENOSPCOptions sets the actions for a full file system or quota.
type ENOSPCOptions struct {
	Policy ENOSPCPolicy // default: ENOSPCReport
	Guest  qmp.Spec     // monitor that pauses the guest (QMP, or Libvirt and Domain); zero: the guest is not paused
}

const (
	enospcPoll        = time.Second           // interval of looking for space
	enospcBlindRetry  = 5 * time.Second       // interval of retries where free space is unknown
	enospcRetryTime   = 50 * time.Millisecond // time that a retried request gets to fail again
	enospcGuestLimit  = 10 * time.Second      // for pausing a guest, and for continuing it
	enospcReportAgain = 10 * time.Second      // after this time it is logged again
)

// enospcMonitor handles requests that are parked for want of space (park.go in package backend), in
// one goroutine; workers only notify it. All disks of a process belong to one guest.
//
// ext4 and XFS reserve space for delayed allocation when a write enters the page cache, quotas
// (EDQUOT) included, and Btrfs does the same. So a full file system shows at the write. A sync that
// fails with ENOSPC, as NFS may answer, is different: the kernel has dropped data whose write the
// guest has seen complete. The disk is then read-only (cow.ErrFailed), and nothing is parked. On
// such a file system the page cache must be bypassed (--cache none), so that the write itself
// fails.
type enospcMonitor struct {
	daemon   *Daemon
	spec     qmp.Spec
	hasSpace func(path string, want int64) (enoughSpace, known bool)
	wake     chan struct{} // capacity one: the fields below have changed

	mu             sync.Mutex
	policy         ENOSPCPolicy
	waiting        map[string]*waitingDisk // by disk
	retryRequested bool                    // the operator says that there is space

	// Owned by run's goroutine.
	guest        *qmp.Handle // was asked to pause; nil: not since space ran out
	endPause     func()      // ends the pause that hooks ignore
	pausedAt     time.Time   // when the guest was paused
	blindRetryAt time.Time   // when requests were retried last without knowledge of free space
	lastError    string      // last error of the guest that was logged
}

// waitingDisk is a disk with parked requests.
type waitingDisk struct {
	event       backend.IOErrorEvent // of the first request
	bytes       int64                // of requests parked since the last retry
	newlyParked bool                 // a request was parked since run looked
	reportedAt  time.Time            // zero: not yet reported
}

func newENOSPCMonitor(d *Daemon, o ENOSPCOptions) *enospcMonitor {
	if o.Policy == "" {
		o.Policy = ENOSPCReport
	}
	o.Guest.Mode = qmp.QuiescePause
	return &enospcMonitor{daemon: d, spec: o.Guest, policy: o.Policy, hasSpace: hasSpaceFor, wake: make(chan struct{}, 1), waiting: map[string]*waitingDisk{}}
}

// onPark is called for every parked request by its worker.
func (f *enospcMonitor) onPark(dev *backend.Device, io *cow.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.waiting[dev.Name()]
	if s == nil {
		s = &waitingDisk{event: dev.ErrorEvent(io, f.action())}
		f.waiting[dev.Name()] = s
	}
	s.bytes += io.Length
	s.newlyParked = true
	f.notify()
}

func (f *enospcMonitor) action() string {
	if f.reachable() {
		return backend.ActionStop
	}
	return backend.ActionWait
}

// reachable reports whether the guest can be paused.
func (f *enospcMonitor) reachable() bool { return f.spec.QMP != "" || f.spec.Libvirt != "" }

func (f *enospcMonitor) notify() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// setPolicy changes the policy. With ENOSPCReport parked requests fail at once.
func (f *enospcMonitor) setPolicy(p ENOSPCPolicy) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.policy = p
	for _, e := range f.daemon.snapshot() {
		e.dev.SetParking(p == ENOSPCStop)
	}
	f.retryRequested = true
	f.notify()
}

func (f *enospcMonitor) currentPolicy() ENOSPCPolicy {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.policy
}

// resume is cow-resume: parked requests are retried now, and the guest continues.
func (f *enospcMonitor) resume(disk string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.waiting[disk] == nil {
		return &control.Error{Class: control.DeviceNotActive, Desc: fmt.Sprintf("disk %q: none of its requests waits for space", disk)}
	}
	f.retryRequested = true
	f.notify()
	return nil
}

// waitingDisks returns the disks with parked requests, sorted.
func (f *enospcMonitor) waitingDisks() (disks []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for name := range f.waiting {
		disks = append(disks, name)
	}
	slices.Sort(disks)
	return disks
}

// run handles parked requests until ctx is done. A paused guest then stays paused: the next process
// finds its record and continues it.
func (f *enospcMonitor) run(ctx context.Context) {
	tick := time.NewTicker(enospcPoll)
	defer tick.Stop()
	defer f.closeGuest()
	for {
		select {
		case <-f.wake:
		case <-tick.C:
			if len(f.waitingDisks()) == 0 {
				continue
			}
		case <-ctx.Done():
			return
		}
		f.report()
		f.pause(ctx)
		f.retry(ctx)
	}
}

func (f *enospcMonitor) closeGuest() {
	if f.guest != nil {
		f.guest.Close()
	}
	if f.endPause != nil {
		f.endPause()
	}
}

// report logs and emits disks that are newly out of space.
func (f *enospcMonitor) report() {
	f.mu.Lock()
	var events []backend.IOErrorEvent
	for _, s := range f.waiting {
		if s.reportedAt.IsZero() || s.newlyParked && time.Since(s.reportedAt) > enospcReportAgain {
			events = append(events, s.event)
		}
		if s.newlyParked {
			s.reportedAt = time.Now()
		}
	}
	f.mu.Unlock()
	for _, e := range events {
		f.daemon.log.Error("no space is left for the guest's writes: its requests wait for space", "disk", e.Disk, "op", e.Operation,
			"offset", e.Offset, "length", e.Length, "err", e.Error, "action", e.Action)
		f.daemon.emit("COW_IO_ERROR", e)
	}
}

// pause pauses the guest, if it runs, when a request was parked.
func (f *enospcMonitor) pause(ctx context.Context) {
	f.mu.Lock()
	fresh := false
	for _, s := range f.waiting {
		fresh = fresh || s.newlyParked
		s.newlyParked = false
	}
	f.mu.Unlock()
	if !fresh || !f.reachable() {
		return
	}
	if f.guest == nil {
		guest, err := f.spec.Open(f.daemon.log, f.daemon.monitorFor(f.spec.QMP))
		if err != nil {
			f.guestFailed("paused", err)
			return
		}
		f.guest, f.endPause, f.pausedAt = guest, f.daemon.hooks.beginPause(), time.Now()
	}
	// The next process continues the guest if this one dies. On a full file system there may be no
	// room for the record.
	if err := f.note(f.waitingDisks(), &f.spec); err != nil {
		f.daemon.log.Warn("a guest is being paused, and the record of that could not be written: if this process is killed, run cont on QEMU's monitor", "err", err)
	}
	limit, cancel := context.WithTimeout(ctx, enospcGuestLimit)
	defer cancel()
	if err := f.guest.Freeze(limit); err != nil {
		f.guestFailed("paused", err)
	}
}

func (f *enospcMonitor) note(disks []string, spec *qmp.Spec) error {
	if f.daemon.names == nil {
		return nil
	}
	return f.daemon.names.Note(disks, spec)
}

// guestFailed logs an error of the guest unless it equals the last one logged.
func (f *enospcMonitor) guestFailed(what string, err error) {
	if text := err.Error(); text != f.lastError {
		f.lastError = text
		f.daemon.log.Error("the guest cannot be "+what+" for want of space", "err", err)
	}
}

// retry retries all parked requests when there seems to be space, or when the operator says so.
func (f *enospcMonitor) retry(ctx context.Context) {
	disks := f.waitingDisks()
	exports, err := f.daemon.named(disks)
	if len(disks) == 0 || err != nil {
		return
	}
	f.mu.Lock()
	told := f.retryRequested
	f.retryRequested = false
	f.mu.Unlock()
	if !told && !f.enoughSpace(exports) {
		return
	}
	f.mu.Lock()
	for _, s := range f.waiting {
		s.bytes = 0
	}
	f.mu.Unlock()
	for _, e := range exports {
		e.dev.ResumeParked()
	}
	select {
	case <-time.After(enospcRetryTime):
	case <-ctx.Done():
		return
	}
	for _, e := range exports {
		if e.dev.Parked() > 0 {
			return
		}
	}
	if f.guest != nil {
		limit, cancel := context.WithTimeout(ctx, enospcGuestLimit)
		defer cancel()
		if err := f.guest.Thaw(limit); err != nil {
			f.guestFailed("continued", err)
			return
		}
		if err := f.note(disks, nil); err != nil {
			f.daemon.log.Warn("the guest continues, and the record that it was paused is left", "err", err)
		}
		f.closeGuest()
		f.guest, f.endPause = nil, nil
	}
	f.end(disks)
}

// end forgets disks whose requests have space again.
func (f *enospcMonitor) end(disks []string) {
	f.mu.Lock()
	for _, name := range disks {
		if s := f.waiting[name]; s != nil && !s.newlyParked {
			delete(f.waiting, name)
		}
	}
	f.mu.Unlock()
	f.lastError = ""
	f.daemon.log.Info("all requests that waited for space have been retried", "disks", strings.Join(disks, ", "))
	f.daemon.emit("COW_NOSPACE_RESUMED", map[string][]string{"disks": disks})
}

// enoughSpace reports whether there seems to be space for all parked requests.
func (f *enospcMonitor) enoughSpace(exports []*Export) bool {
	blind := false
	for _, e := range exports {
		path := ""
		if f.daemon.names != nil {
			path = f.daemon.names.Data(e.dev.Name())
		}
		f.mu.Lock()
		want := int64(0)
		if s := f.waiting[e.dev.Name()]; s != nil {
			want = s.bytes
		}
		f.mu.Unlock()
		enough, known := f.hasSpace(path, want)
		if !enough {
			return false
		}
		blind = blind || !known
	}
	if blind && time.Since(f.blindRetryAt) < enospcBlindRetry {
		return false
	}
	f.blindRetryAt = time.Now()
	return true
}

// hasSpaceFor reports whether the file system of the file at path has space for want bytes and a
// margin. known is false for a device, and where the kernel does not tell.
func hasSpaceFor(path string, want int64) (enough, known bool) {
	r, ok := statfs(path)
	if !ok {
		return true, false
	}
	// Without the margin the guest would stop and continue with every block.
	want = max(2*want, min(16<<20, r.total/128))
	if r.free < want {
		return false, true
	}
	// A quota shows only at an allocation: try one in an unnamed file of the same owner in the same
	// directory.
	fd, err := unix.Open(filepath.Dir(path), unix.O_TMPFILE|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EDQUOT), true
	}
	defer unix.Close(fd)
	err = unix.Fallocate(fd, 0, 0, want)
	return !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EDQUOT), true
}
