package daemon

import (
	"context"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/dustin/go-humanize"
	"golang.org/x/sys/unix"

	"cowblk/backend/qmp"
)

// Intervals of the space monitor.
const (
	spaceInterval  = 5 * time.Second // between checks of the file systems
	parkedInterval = time.Second     // between retries of parked requests
)

// spaceMonitor watches the space of the heads in one goroutine: it reports file systems that are
// low on space (this file) and handles requests that are parked for want of space (enospc.go).
// Nothing waits for it: a file system or a guest that does not answer blocks the monitor only.
type spaceMonitor struct {
	daemon   *Daemon
	statfs   func(path string) (fsSpace, bool) // false: no file system that can fill up
	guest    qmp.Spec                          // ENOSPCOptions.Guest
	newLimit chan struct{}                     // capacity one
	parked   chan struct{}                     // capacity one: waiting, policy, retryNow

	mu       sync.Mutex
	limit    Threshold
	low      map[uint64]bool // file systems reported as below limit
	policy   ENOSPCPolicy
	waiting  map[string]*waitingDisk // by disk
	retryNow bool                    // the operator says that there is space

	// Owned by run's goroutine.
	paused       *qmp.Handle // guest that was asked to pause; nil: not since space ran out
	endPause     func()      // ends the pause that hooks ignore; nil with paused
	blindRetryAt time.Time   // time of the last retry without knowledge of free space
	lastError    string      // last error of the guest that was logged
}

func newSpaceMonitor(d *Daemon, limit Threshold, o ENOSPCOptions) *spaceMonitor {
	if o.Policy == "" {
		o.Policy = ENOSPCReport
	}
	o.Policy.warnFormerName(d.log, o.Given)
	o.Guest.Mode = qmp.QuiescePause
	return &spaceMonitor{
		daemon: d, statfs: statfs, guest: o.Guest, newLimit: make(chan struct{}, 1),
		parked: make(chan struct{}, 1), limit: limit, low: map[uint64]bool{}, policy: o.Policy,
		waiting: map[string]*waitingDisk{},
	}
}

// run works until ctx is done. A paused guest then stays paused: the next process finds its record
// and continues it.
func (m *spaceMonitor) run(ctx context.Context) {
	low, parked := time.NewTicker(spaceInterval), time.NewTicker(parkedInterval)
	defer low.Stop()
	defer parked.Stop()
	defer m.closeGuest()
	m.checkLow()
	for {
		select {
		case <-low.C:
			m.checkLow()
		case <-m.newLimit:
			m.checkLow()
		case <-parked.C:
			m.handleParked(ctx)
		case <-m.parked:
			m.handleParked(ctx)
		case <-ctx.Done():
			return
		}
	}
}

// notify makes run look at what has changed.
func notify(changed chan struct{}) {
	select {
	case changed <- struct{}{}:
	default:
	}
}

// setLimit changes the threshold. Space that is low then is reported again.
func (m *spaceMonitor) setLimit(t Threshold) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.limit, m.low = t, map[uint64]bool{} // a check in progress changes the former map
	notify(m.newLimit)
}

func (m *spaceMonitor) settings() (Threshold, ENOSPCPolicy) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.limit, m.policy
}

// SpaceLow is the data of COW_SPACE_LOW: a file system of heads with less free space than the
// threshold.
type SpaceLow struct {
	Disks     []string `json:"disks"`     // disks of this process with heads on the file system
	Path      string   `json:"path"`      // a directory of the file system
	Free      int64    `json:"free"`      // bytes
	Total     int64    `json:"total"`     // bytes
	Threshold int64    `json:"threshold"` // bytes; 0: off
	Files              // free files: a new disk or layer needs some

	id uint64 // of the file system
}

// Low reports whether space or files are low.
func (l *SpaceLow) Low() bool { return l.Free < l.Threshold || l.Files.Low() }

// checkLow measures every file system once and reports those that have become low. The state ends
// when a quarter more than the threshold is free.
func (m *spaceMonitor) checkLow() {
	m.mu.Lock()
	limit, low := m.limit, m.low
	m.mu.Unlock()
	if limit == (Threshold{}) {
		return
	}
	for _, f := range m.survey(limit) {
		log := m.daemon.log.With("disks", strings.Join(f.Disks, ", "), "path", f.Path,
			"free", humanize.IBytes(uint64(f.Free)))
		switch {
		case f.Low() && !low[f.id]:
			low[f.id] = true
			log.Warn("space is low: guest writes will fail when it runs out",
				"threshold", humanize.IBytes(uint64(f.Threshold)), "free_files", f.Files.Free)
			m.daemon.emit("COW_SPACE_LOW", f)
		case !f.Low() && f.Free >= f.Threshold+f.Threshold/4 && low[f.id]:
			delete(low, f.id)
			log.Info("space is no longer low")
		}
	}
}

// survey measures every file system of heads, in the order of the disks. Raw files have no heads.
func (m *spaceMonitor) survey(limit Threshold) []*SpaceLow {
	found := []*SpaceLow{}
	for _, e := range m.daemon.snapshot() {
		path := m.head(e)
		if path == "" || e.dev.ReadOnly() {
			continue
		}
		r, ok := m.statfs(path)
		if !ok {
			continue
		}
		i := slices.IndexFunc(found, func(f *SpaceLow) bool { return f.id == r.id })
		if i < 0 {
			i = len(found)
			low := r.below(path, limit)
			found = append(found, &low)
		}
		found[i].Disks = append(found[i].Disks, e.dev.Name())
	}
	return found
}

// head returns the path of the head's data; empty: none.
func (m *spaceMonitor) head(e *Export) string {
	if m.daemon.manifests == nil {
		return ""
	}
	return m.daemon.manifests.Data(e.dev.Name())
}

// query returns every file system of heads, low or not: the answer to query-cow-space.
func (m *spaceMonitor) query() []*SpaceLow {
	limit, _ := m.settings()
	return m.survey(limit)
}

// Files counts the files (inodes) of a file system. Zero value: the file system does not count
// them.
type Files struct {
	Free  int64 `json:"files-free"`
	Total int64 `json:"files-total"`
	Least int64 `json:"files-threshold"` // free files below which Low is true
}

// Low reports whether fewer files are free than the threshold.
func (f Files) Low() bool { return f.Total > 0 && f.Free < f.Least }

// fsSpace is the space of a file system.
type fsSpace struct {
	id          uint64 // device number
	free, total int64  // bytes; free to this process
	files       Files
}

// below compares the space of the file system of the file at path with a threshold.
func (r fsSpace) below(path string, limit Threshold) SpaceLow {
	return SpaceLow{
		Path: filepath.Dir(path), Free: r.free, Total: r.total,
		Threshold: limit.of(r.total), Files: limit.files(r.files), id: r.id,
	}
}

// FreeSpace returns the free space and threshold of the file system of the regular file at path,
// without Disks. ok is false if there is no such file, or it is a device.
func FreeSpace(path string, t Threshold) (low SpaceLow, ok bool) {
	r, ok := statfs(path)
	return r.below(path, t), ok
}

// statfs measures the file system of the regular file at path. It returns false for a block device,
// which a device-mapper table may name: a device cannot grow.
func statfs(path string) (fsSpace, bool) {
	var st unix.Stat_t
	var fs unix.Statfs_t
	if unix.Stat(path, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFREG ||
		unix.Statfs(path, &fs) != nil {
		return fsSpace{}, false
	}
	unit := int64(fs.Frsize)
	return fsSpace{
		id: st.Dev, free: int64(fs.Bavail) * unit, total: int64(fs.Blocks) * unit,
		files: Files{Free: int64(fs.Ffree), Total: int64(fs.Files)},
	}, true
}
