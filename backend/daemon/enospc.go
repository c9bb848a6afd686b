package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"cowblk/backend"
	"cowblk/backend/control"
	"cowblk/backend/qmp"
	"cowblk/cow"
)

// ENOSPCPolicy is the action for guest requests that find no space, in the words of QEMU's werror.
type ENOSPCPolicy string

const (
	// ENOSPCStop parks them until there is space, and pauses the guest if a monitor is known.
	ENOSPCStop ENOSPCPolicy = "stop"
	// ENOSPCReport fails them.
	ENOSPCReport ENOSPCPolicy = "report"
)

// ParseENOSPCPolicy returns the policy with this name. The former names are pause (stop) and error
// (report).
func ParseENOSPCPolicy(s string) (ENOSPCPolicy, error) {
	switch p := ENOSPCPolicy(s); p {
	case ENOSPCStop, ENOSPCReport:
		return p, nil
	case "pause":
		return ENOSPCStop, nil
	case "error":
		return ENOSPCReport, nil
	}
	return "", fmt.Errorf("%q: expected %s or %s", s, ENOSPCStop, ENOSPCReport)
}

// warnFormerName logs a warning if the policy was given by its former name.
func (p ENOSPCPolicy) warnFormerName(log *slog.Logger, given string) {
	if given != string(p) && given != "" {
		log.Warn("on-enospc: this name of the policy is a former one", "found", given,
			"use", string(p))
	}
}

// ENOSPCOptions sets the actions for a full file system or quota.
type ENOSPCOptions struct {
	Policy ENOSPCPolicy // default: ENOSPCReport
	Given  string       // the name of Policy on the command line; empty: none
	// Guest is the monitor that pauses the guest (QMP, or Libvirt and Domain). Zero: the guest is
	// not paused.
	Guest qmp.Spec
}

// The methods below handle requests that are parked for want of space (park.go in package backend).
// All disks of a process belong to one guest.
//
// ext4 and XFS reserve space for delayed allocation when a write enters the page cache, quotas
// (EDQUOT) included, and Btrfs does the same. So a full file system shows at the write. A sync that
// fails with ENOSPC, as NFS may answer, is different: the kernel has dropped data whose write the
// guest has seen complete. The disk is then read-only (cow.ErrFailed), and nothing is parked. On
// such a file system the page cache must be bypassed (--cache none), so that the write itself
// fails.

const (
	enospcBlindRetry  = 5 * time.Second       // interval of retries where free space is unknown
	enospcRetryTime   = 50 * time.Millisecond // time that a retried request gets to fail again
	enospcGuestLimit  = 10 * time.Second      // for pausing a guest, and for continuing it
	enospcReportAgain = 10 * time.Second      // after this time it is logged again
)

// waitingDisk is a disk with parked requests.
type waitingDisk struct {
	event       backend.IOErrorEvent // of the first request
	bytes       int64                // of requests parked since the last retry
	newlyParked bool                 // a request was parked since run looked
	reportedAt  time.Time            // zero: not yet reported
}

// onPark is called for every parked request by its worker.
func (m *spaceMonitor) onPark(dev *backend.Device, io *cow.Request) {
	m.mu.Lock()
	defer m.mu.Unlock()
	w := m.waiting[dev.Name()]
	if w == nil {
		action := backend.ActionWait
		if m.canPause() {
			action = backend.ActionStop
		}
		w = &waitingDisk{event: dev.ErrorEvent(io, action)}
		m.waiting[dev.Name()] = w
	}
	w.bytes += io.Length
	w.newlyParked = true
	notify(m.parked)
}

func (m *spaceMonitor) canPause() bool { return m.guest.QMP != "" || m.guest.Libvirt != "" }

// setPolicy changes the policy. With ENOSPCReport parked requests fail at once.
func (m *spaceMonitor) setPolicy(p ENOSPCPolicy) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.policy = p
	for _, e := range m.daemon.snapshot() {
		e.dev.SetParking(p == ENOSPCStop)
	}
	m.retryNow = true
	notify(m.parked)
}

// resume is cow-resume: parked requests are retried now, and the guest continues.
func (m *spaceMonitor) resume(disk string) error {
	if _, err := m.daemon.named([]string{disk}); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.waiting[disk] == nil {
		return &control.Error{Class: control.DeviceNotActive,
			Desc: fmt.Sprintf("disk %q: none of its requests waits for space", disk)}
	}
	m.retryNow = true
	notify(m.parked)
	return nil
}

// handleParked pauses the guest when a request was parked, and retries all parked requests when
// there seems to be space or the operator says so.
func (m *spaceMonitor) handleParked(ctx context.Context) {
	bytes, newlyParked := m.reportParked()
	disks := slices.Sorted(maps.Keys(bytes))
	if newlyParked && m.canPause() {
		m.pauseGuest(ctx, disks)
	}
	exports, err := m.daemon.named(disks)
	if err != nil {
		return // none is parked, or the disks are gone
	}
	m.mu.Lock()
	now := m.retryNow || m.policy == ENOSPCReport
	m.retryNow = false
	m.mu.Unlock()
	if now || m.enoughSpace(exports, bytes) {
		m.retry(ctx, exports, disks)
	}
}

// reportParked logs and emits disks that are newly out of space. It returns the bytes parked since
// the last retry, by disk, and whether a request was parked since the last call.
func (m *spaceMonitor) reportParked() (bytes map[string]int64, newlyParked bool) {
	bytes = map[string]int64{}
	var events []backend.IOErrorEvent
	m.mu.Lock()
	for name, w := range m.waiting {
		bytes[name] = w.bytes
		again := w.newlyParked && time.Since(w.reportedAt) > enospcReportAgain
		if w.reportedAt.IsZero() || again {
			events = append(events, w.event)
		}
		if w.newlyParked {
			w.reportedAt, w.newlyParked, newlyParked = time.Now(), false, true
		}
	}
	m.mu.Unlock()
	for _, e := range events {
		m.daemon.log.Error("no space is left for the guest's writes: its requests wait for space",
			"disk", e.Disk, "op", e.Operation, "offset", e.Offset, "length", e.Length,
			"err", e.Error, "action", e.Action)
		m.daemon.emit("COW_IO_ERROR", e)
	}
	return bytes, newlyParked
}

// pauseGuest pauses the guest, if it runs.
func (m *spaceMonitor) pauseGuest(ctx context.Context, disks []string) {
	if m.paused == nil {
		guest, err := m.guest.Open(m.daemon.log, m.daemon.monitorFor(m.guest.QMP))
		if err != nil {
			m.guestFailed("stop", err)
			return
		}
		m.paused, m.endPause = guest, m.daemon.hooks.beginPause()
	}
	// The next process continues the guest if this one dies. On a full file system there may be no
	// room for the record.
	if err := m.setQuiesceRecord(disks, &m.guest); err != nil {
		m.daemon.log.Warn("a guest is being paused, and the record of that could not be written: "+
			"if this process is killed, run cont on QEMU's monitor", "err", err)
	}
	limit, cancel := context.WithTimeout(ctx, enospcGuestLimit)
	defer cancel()
	if err := m.paused.Freeze(limit); err != nil {
		m.guestFailed("stop", err)
	}
}

// continueGuest continues the guest if it was paused.
func (m *spaceMonitor) continueGuest(ctx context.Context, disks []string) error {
	if m.paused == nil {
		return nil
	}
	limit, cancel := context.WithTimeout(ctx, enospcGuestLimit)
	defer cancel()
	if err := m.paused.Thaw(limit); err != nil {
		m.guestFailed("cont", err)
		return err
	}
	if err := m.setQuiesceRecord(disks, nil); err != nil {
		m.daemon.log.Warn("the guest continues, and the record that it was paused is left",
			"err", err)
	}
	m.closeGuest()
	return nil
}

func (m *spaceMonitor) closeGuest() {
	if m.paused != nil {
		m.paused.Close()
		m.endPause()
		m.paused, m.endPause = nil, nil
	}
}

func (m *spaceMonitor) setQuiesceRecord(disks []string, spec *qmp.Spec) error {
	if m.daemon.manifests == nil {
		return nil
	}
	return m.daemon.manifests.SetQuiesceRecord(disks, spec)
}

// guestFailed logs an error of the guest unless it equals the last one logged. Package loglimit,
// which bounds a rate, does not fit: the same error for hours is one event.
func (m *spaceMonitor) guestFailed(command string, err error) {
	if text := err.Error(); text != m.lastError {
		m.lastError = text
		m.daemon.log.Error("the guest of a full file system could not be paused or continued",
			"command", command, "err", err)
	}
}

// enoughSpace reports whether there seems to be space for all parked requests, whose bytes are
// given by disk.
func (m *spaceMonitor) enoughSpace(exports []*Export, bytes map[string]int64) bool {
	blind := false
	for _, e := range exports {
		enough, known := m.hasSpace(m.head(e), bytes[e.dev.Name()])
		if !enough {
			return false
		}
		blind = blind || !known
	}
	if blind && time.Since(m.blindRetryAt) < enospcBlindRetry {
		return false
	}
	m.blindRetryAt = time.Now()
	return true
}

// hasSpace reports whether the file system of the file at path has space for want bytes and a
// margin. known is false for a device, and where the kernel does not tell.
func (m *spaceMonitor) hasSpace(path string, want int64) (enough, known bool) {
	r, ok := m.statfs(path)
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
	if err == nil {
		defer unix.Close(fd)
		err = unix.Fallocate(fd, 0, 0, want)
	}
	return !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EDQUOT), true
}

// retry retries the parked requests. If none is parked again, the guest continues.
func (m *spaceMonitor) retry(ctx context.Context, exports []*Export, disks []string) {
	m.mu.Lock()
	for _, w := range m.waiting {
		w.bytes = 0
	}
	m.mu.Unlock()
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
	if m.continueGuest(ctx, disks) != nil {
		return
	}
	m.mu.Lock()
	for _, name := range disks {
		if w := m.waiting[name]; w != nil && !w.newlyParked {
			delete(m.waiting, name)
		}
	}
	m.mu.Unlock()
	m.lastError = ""
	m.daemon.log.Info("all requests that waited for space have been retried",
		"disks", strings.Join(disks, ", "))
	m.daemon.emit("COW_NOSPACE_RESUMED", map[string][]string{"disks": disks})
}
