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

// ENOSPCPolicy says what becomes of a guest's requests that find no space.
type ENOSPCPolicy string

const (
	// ENOSPCStop lets them wait, and pauses the guest if it can be reached, until there
	// is space.
	ENOSPCStop ENOSPCPolicy = "pause"
	// ENOSPCReport fails them.
	ENOSPCReport ENOSPCPolicy = "error"
)

// ParseENOSPCPolicy checks a policy's name.
func ParseENOSPCPolicy(s string) (ENOSPCPolicy, error) {
	if p := ENOSPCPolicy(s); p == ENOSPCStop || p == ENOSPCReport {
		return p, nil
	}
	return "", fmt.Errorf("%q: expected %s or %s", s, ENOSPCStop, ENOSPCReport)
}

// ENOSPCOptions are about disks whose file system or quota is full.
type ENOSPCOptions struct {
	Policy ENOSPCPolicy // default: FullError
	Guest  qmp.Spec     // through whom the guest is paused (QMP, or Libvirt and Domain); zero: it is not
}

const (
	enospcPoll        = time.Second           // how often it is seen whether there is space again
	enospcBlindRetry  = 5 * time.Second       // how often it is tried where that cannot be seen
	enospcRetryTime   = 50 * time.Millisecond // how long a request may take to find out
	enospcGuestLimit  = 10 * time.Second      // for pausing a guest, and for letting it go on
	enospcReportAgain = 10 * time.Second      // a shortage that goes on so long after the last word is told again
)

// enospcMonitor looks after requests that are parked for want of space (park.go). One goroutine;
// workers only leave word. All disks of a process are one guest's.
//
// When ENOSPC comes: ext4 and XFS reserve space for delayed allocation when a write
// enters the page cache, quotas (EDQUOT) included, and Btrfs does likewise, so that a
// full file system shows at the write, and here. A sync that fails with ENOSPC, as NFS
// may answer for what its page cache took, is another thing: the kernel has dropped
// data that the guest was told is written. That is sticky (cow.ErrFailed), and nothing
// is parked; where the file system may do that, data belongs past the page cache
// (--cache none), so that the write itself fails.
type enospcMonitor struct {
	daemon   *Daemon
	spec     qmp.Spec
	hasSpace func(path string, want int64) (enoughSpace, known bool)
	wake     chan struct{} // holds one: there is news below

	mu             sync.Mutex
	policy         ENOSPCPolicy
	waiting        map[string]*waitingDisk // by disk
	retryRequested bool                    // a person says that there is space

	// Of run's goroutine.
	guest        *qmp.Handle // was asked to pause; nil: not since the last shortage
	endPause     func()      // ends what the hooks were told about the pause
	pausedAt     time.Time   // of the shortage
	blindRetryAt time.Time   // blindly
	lastError    string      // the last trouble with the guest
}

// waitingDisk is a disk's.
type waitingDisk struct {
	event       backend.IOErrorEvent // of the first request
	bytes       int64                // of requests parked since the last try
	newlyParked bool                 // one was parked since run has looked
	reportedAt  time.Time            // zero: not yet
}

func newENOSPCMonitor(d *Daemon, o ENOSPCOptions) *enospcMonitor {
	if o.Policy == "" {
		o.Policy = ENOSPCReport
	}
	o.Guest.Mode = qmp.QuiescePause
	return &enospcMonitor{daemon: d, spec: o.Guest, policy: o.Policy, hasSpace: hasSpaceFor, wake: make(chan struct{}, 1), waiting: map[string]*waitingDisk{}}
}

// onPark is told of every parked request, by its worker.
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

// setPolicy puts another policy in force: what waits fails at once if it is FullError.
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

// resume is cow-resume: what waits is tried again now, and the guest goes on.
func (f *enospcMonitor) resume(disk string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.waiting[disk] == nil {
		return &control.Error{Class: control.DeviceNotActive, Desc: fmt.Sprintf("disk %q: nothing of it waits for space", disk)}
	}
	f.retryRequested = true
	f.notify()
	return nil
}

// waitingDisks are the disks with a shortage.
func (f *enospcMonitor) waitingDisks() (disks []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for name := range f.waiting {
		disks = append(disks, name)
	}
	slices.Sort(disks)
	return disks
}

// run looks after shortages until ctx is done. A guest that is paused then stays so: the
// next process lets it go on, as it has a note of it.
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

// report tells of shortages that are new.
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
		f.daemon.log.Error("no space is left for what the guest writes: its requests wait until there is", "disk", e.Disk, "op", e.Operation,
			"offset", e.Offset, "length", e.Length, "err", e.Error, "action", e.Action)
		f.daemon.emit("COW_IO_ERROR", e)
	}
}

// pause stops the guest, if it runs, whenever a request has been parked.
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
	// The next process lets the guest go on if this one dies. On a full file system
	// there may be no room for the note.
	if err := f.note(f.waitingDisks(), &f.spec); err != nil {
		f.daemon.log.Warn("a guest is being paused, and there can be no note of it: if this process is killed, run cont on QEMU's monitor", "err", err)
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

// guestFailed is told once as long as it stays the same.
func (f *enospcMonitor) guestFailed(what string, err error) {
	if text := err.Error(); text != f.lastError {
		f.lastError = text
		f.daemon.log.Error("the guest cannot be "+what+" for want of space", "err", err)
	}
}

// retry tries everything again once there seems to be space, or a person says so.
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
			f.daemon.log.Warn("the guest goes on, and the note that it was paused is left", "err", err)
		}
		f.closeGuest()
		f.guest, f.endPause = nil, nil
	}
	f.end(disks)
}

// end forgets a shortage.
func (f *enospcMonitor) end(disks []string) {
	f.mu.Lock()
	for _, name := range disks {
		if s := f.waiting[name]; s != nil && !s.newlyParked {
			delete(f.waiting, name)
		}
	}
	f.mu.Unlock()
	f.lastError = ""
	f.daemon.log.Info("requests that waited for space have been tried again, and none waits any more", "disks", strings.Join(disks, ", "))
	f.daemon.emit("COW_NOSPACE_RESUMED", map[string][]string{"disks": disks})
}

// enoughSpace reports whether there seems to be space for all that was parked.
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

// hasSpaceFor reports whether there is space for as many bytes, and some more, where the
// file at path grows. Not known: it is a device, or none of the ways to see that work.
func hasSpaceFor(path string, want int64) (enough, known bool) {
	r, ok := statfs(path)
	if !ok {
		return true, false
	}
	// Some more, or the guest would stop and go with every block.
	want = max(2*want, min(16<<20, r.total/128))
	if r.free < want {
		return false, true
	}
	// Quotas: a file without a name, of the same owner, in the same directory.
	fd, err := unix.Open(filepath.Dir(path), unix.O_TMPFILE|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EDQUOT), true
	}
	defer unix.Close(fd)
	err = unix.Fallocate(fd, 0, 0, want)
	return !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EDQUOT), true
}
