package backend

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

	"cowblk/backend/control"
	"cowblk/backend/qmp"
	"cowblk/cow"
)

// OnFull says what becomes of a guest's requests that find no space.
type OnFull string

const (
	// FullPause lets them wait, and pauses the guest if it can be reached, until there
	// is space.
	FullPause OnFull = "pause"
	// FullError fails them.
	FullError OnFull = "error"
)

// ParseOnFull checks a policy's name.
func ParseOnFull(s string) (OnFull, error) {
	if p := OnFull(s); p == FullPause || p == FullError {
		return p, nil
	}
	return "", fmt.Errorf("%q: expected %s or %s", s, FullPause, FullError)
}

// FullOptions are about disks whose file system or quota is full.
type FullOptions struct {
	Policy OnFull   // default: FullError
	Guest  qmp.Spec // through whom the guest is paused (QMP, or Libvirt and Domain); zero: it is not
}

const (
	fullPoll   = time.Second           // how often it is seen whether there is space again
	fullBlind  = 5 * time.Second       // how often it is tried where that cannot be seen
	fullSettle = 50 * time.Millisecond // how long a request may take to find out
	fullLimit  = 10 * time.Second      // for pausing a guest, and for letting it go on
	fullReturn = 10 * time.Second      // a shortage that goes on so long after the last word is told again
)

// shortages looks after requests that are parked for want of space (park.go). One goroutine;
// workers only leave word. All disks of a process are one guest's.
//
// When ENOSPC comes: ext4 and XFS reserve space for delayed allocation when a write
// enters the page cache, quotas (EDQUOT) included, and Btrfs does likewise, so that a
// full file system shows at the write, and here. A sync that fails with ENOSPC, as NFS
// may answer for what its page cache took, is another thing: the kernel has dropped
// data that the guest was told is written. That is sticky (cow.ErrFailed), and nothing
// is parked; where the file system may do that, data belongs past the page cache
// (--cache none), so that the write itself fails.
type shortages struct {
	daemon *Daemon
	spec   qmp.Spec
	room   func(path string, want int64) (enough, known bool)
	wake   chan struct{} // holds one: there is news below

	mu     sync.Mutex
	policy OnFull
	short  map[string]*shortage // by disk
	goOn   bool                 // a person says that there is space

	// Of run's goroutine.
	guest *qmp.Handle // was asked to pause; nil: not since the last shortage
	over  func()      // ends what the hooks were told about the pause
	since time.Time   // of the shortage
	tried time.Time   // blindly
	said  string      // the last trouble with the guest
}

// shortage is a disk's.
type shortage struct {
	event ioErrorEvent // of the first request
	bytes int64        // of requests parked since the last try
	fresh bool         // one was parked since run has looked
	told  time.Time    // zero: not yet
}

func newShortages(d *Daemon, o FullOptions) *shortages {
	if o.Policy == "" {
		o.Policy = FullError
	}
	o.Guest.Mode = qmp.QuiescePause
	return &shortages{daemon: d, spec: o.Guest, policy: o.Policy, room: roomFor, wake: make(chan struct{}, 1), short: map[string]*shortage{}}
}

// add puts the policy in force for an export.
func (f *shortages) add(e *Export) {
	e.dev.onPark = func(io *cow.Request) { f.parked(e.dev, io) }
	e.dev.setParking(f.policy == FullPause)
}

// parked is told of every parked request, by its worker.
func (f *shortages) parked(dev *Device, io *cow.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.short[dev.name]
	if s == nil {
		s = &shortage{event: dev.errorEvent(io, f.action())}
		f.short[dev.name] = s
	}
	s.bytes += io.Length
	s.fresh = true
	f.nudge()
}

func (f *shortages) action() string {
	if f.reachable() {
		return actionStop
	}
	return actionWait
}

// reachable reports whether the guest can be paused.
func (f *shortages) reachable() bool { return f.spec.QMP != "" || f.spec.Libvirt != "" }

func (f *shortages) nudge() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// setPolicy puts another policy in force: what waits fails at once if it is FullError.
func (f *shortages) setPolicy(p OnFull) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.policy = p
	for _, e := range f.daemon.snapshot() {
		e.dev.setParking(p == FullPause)
	}
	f.goOn = true
	f.nudge()
}

func (f *shortages) inForce() OnFull {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.policy
}

// resume is cow-resume: what waits is tried again now, and the guest goes on.
func (f *shortages) resume(disk string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.short[disk] == nil {
		return &control.Error{Class: control.DeviceNotActive, Desc: fmt.Sprintf("disk %q: nothing of it waits for space", disk)}
	}
	f.goOn = true
	f.nudge()
	return nil
}

// waiting are the disks with a shortage.
func (f *shortages) waiting() (disks []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for name := range f.short {
		disks = append(disks, name)
	}
	slices.Sort(disks)
	return disks
}

// run looks after shortages until ctx is done. A guest that is paused then stays so: the
// next process lets it go on, as it has a note of it.
func (f *shortages) run(ctx context.Context) {
	tick := time.NewTicker(fullPoll)
	defer tick.Stop()
	defer f.leave()
	for {
		select {
		case <-f.wake:
		case <-tick.C:
			if len(f.waiting()) == 0 {
				continue
			}
		case <-ctx.Done():
			return
		}
		f.announce()
		f.pause(ctx)
		f.retry(ctx)
	}
}

func (f *shortages) leave() {
	if f.guest != nil {
		f.guest.Close()
	}
	if f.over != nil {
		f.over()
	}
}

// announce tells of shortages that are new.
func (f *shortages) announce() {
	f.mu.Lock()
	var events []ioErrorEvent
	for _, s := range f.short {
		if s.told.IsZero() || s.fresh && time.Since(s.told) > fullReturn {
			events = append(events, s.event)
		}
		if s.fresh {
			s.told = time.Now()
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
func (f *shortages) pause(ctx context.Context) {
	f.mu.Lock()
	fresh := false
	for _, s := range f.short {
		fresh = fresh || s.fresh
		s.fresh = false
	}
	f.mu.Unlock()
	if !fresh || !f.reachable() {
		return
	}
	if f.guest == nil {
		guest, err := f.spec.Open(f.daemon.log, f.daemon.monitorFor(f.spec.QMP))
		if err != nil {
			f.trouble("paused", err)
			return
		}
		f.guest, f.over, f.since = guest, f.daemon.hooks.pausing(), time.Now()
	}
	// The next process lets the guest go on if this one dies. On a full file system
	// there may be no room for the note.
	if err := f.note(f.waiting(), &f.spec); err != nil {
		f.daemon.log.Warn("a guest is being paused, and there can be no note of it: if this process is killed, run cont on QEMU's monitor", "err", err)
	}
	limit, cancel := context.WithTimeout(ctx, fullLimit)
	defer cancel()
	if err := f.guest.Freeze(limit); err != nil {
		f.trouble("paused", err)
	}
}

func (f *shortages) note(disks []string, spec *qmp.Spec) error {
	if f.daemon.names == nil {
		return nil
	}
	return f.daemon.names.Note(disks, spec)
}

// trouble is told once as long as it stays the same.
func (f *shortages) trouble(what string, err error) {
	if text := err.Error(); text != f.said {
		f.said = text
		f.daemon.log.Error("the guest cannot be "+what+" for want of space", "err", err)
	}
}

// retry tries everything again once there seems to be space, or a person says so.
func (f *shortages) retry(ctx context.Context) {
	disks := f.waiting()
	exports, err := f.daemon.named(disks)
	if len(disks) == 0 || err != nil {
		return
	}
	f.mu.Lock()
	told := f.goOn
	f.goOn = false
	f.mu.Unlock()
	if !told && !f.enough(exports) {
		return
	}
	f.mu.Lock()
	for _, s := range f.short {
		s.bytes = 0
	}
	f.mu.Unlock()
	for _, e := range exports {
		e.dev.resume()
	}
	select {
	case <-time.After(fullSettle):
	case <-ctx.Done():
		return
	}
	for _, e := range exports {
		if e.dev.parked() > 0 {
			return
		}
	}
	if f.guest != nil {
		limit, cancel := context.WithTimeout(ctx, fullLimit)
		defer cancel()
		if err := f.guest.Thaw(limit); err != nil {
			f.trouble("continued", err)
			return
		}
		if err := f.note(disks, nil); err != nil {
			f.daemon.log.Warn("the guest goes on, and the note that it was paused is left", "err", err)
		}
		f.leave()
		f.guest, f.over = nil, nil
	}
	f.end(disks)
}

// end forgets a shortage.
func (f *shortages) end(disks []string) {
	f.mu.Lock()
	for _, name := range disks {
		if s := f.short[name]; s != nil && !s.fresh {
			delete(f.short, name)
		}
	}
	f.mu.Unlock()
	f.said = ""
	f.daemon.log.Info("requests that waited for space have been tried again, and none waits any more", "disks", strings.Join(disks, ", "))
	f.daemon.emit("COW_NOSPACE_RESUMED", map[string][]string{"disks": disks})
}

// enough reports whether there seems to be space for all that was parked.
func (f *shortages) enough(exports []*Export) bool {
	blind := false
	for _, e := range exports {
		path := ""
		if f.daemon.names != nil {
			path = f.daemon.names.Data(e.dev.name)
		}
		f.mu.Lock()
		want := int64(0)
		if s := f.short[e.dev.name]; s != nil {
			want = s.bytes
		}
		f.mu.Unlock()
		enough, known := f.room(path, want)
		if !enough {
			return false
		}
		blind = blind || !known
	}
	if blind && time.Since(f.tried) < fullBlind {
		return false
	}
	f.tried = time.Now()
	return true
}

// roomFor reports whether there is space for as many bytes, and some more, where the
// file at path grows. Not known: it is a device, or none of the ways to see that work.
func roomFor(path string, want int64) (enough, known bool) {
	r, ok := measure(path)
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
